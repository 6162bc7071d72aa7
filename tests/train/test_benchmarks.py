"""Runs on the four benchmarks: from the owners' trees and from prepared shards, whole and cut off, with equal numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_ray.configure import with_override
from saga_ray.train.local import run_local
from tests.train.benchmarks import TREES, StopAfter, Stopped, numbers, raw_and_prepared, same_runs


@pytest.mark.parametrize("name", TREES)
def test_shards_train_as_the_owners_files_do_also_when_cut_off_and_resumed(
    name: str, mllm: Path, tmp_path: Path
) -> None:
    raw, prepared = raw_and_prepared(name, tmp_path, mllm)
    run_local(raw, tmp_path / "whole", "run")
    with pytest.raises(Stopped):
        run_local(prepared, tmp_path / "cut", "run", StopAfter(3))
    assert len(numbers(tmp_path / "cut" / "run")) == 3
    run_local(prepared, tmp_path / "cut", "run")
    same_runs(tmp_path / "whole" / "run", tmp_path / "cut" / "run")
    steps = numbers(tmp_path / "whole" / "run")
    assert len({line["loss/total"] for line in steps}) == len(steps), "the case must not be empty"


def test_other_images_train_otherwise(mllm: Path, tmp_path: Path) -> None:
    """That runs are compared closely enough to tell."""
    raw, prepared = raw_and_prepared("cub", tmp_path, mllm, "potential-field")
    run_local(raw, tmp_path / "one", "run")
    run_local(with_override(prepared, "data.crop_area", 0.6), tmp_path / "two", "run")
    with pytest.raises(AssertionError):
        same_runs(tmp_path / "one" / "run", tmp_path / "two" / "run")
