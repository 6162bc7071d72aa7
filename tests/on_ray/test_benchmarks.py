"""Runs on the four benchmarks: a run from shards that began in one process and ends on Ray against one from the owner's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_ray.configure import with_override
from saga_ray.on_ray.train import Job, run_on_ray
from saga_ray.train.local import run_local
from tests.train.benchmarks import TREES, StopAfter, Stopped, numbers, raw_and_prepared, same_runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TREES)
def test_a_run_from_shards_goes_on_on_ray_and_ends_as_one_from_the_owners_files(
    ray_cluster: None, name: str, mllm_folder: Path, tmp_path: Path
) -> None:
    raw, prepared = (
        with_override(config, "resources.cpus_per_worker", 0.5)
        for config in raw_and_prepared(name, tmp_path, mllm_folder)
    )
    run_local(raw, tmp_path / "whole", "run")
    with pytest.raises(Stopped):
        run_local(prepared, tmp_path / "cut", "run", StopAfter(3))
    assert len(numbers(tmp_path / "cut" / "run")) == 3
    run_on_ray([Job(prepared, "run")], tmp_path / "cut")
    same_runs(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


@pytest.mark.parametrize("name", TREES)
def test_the_owners_files_train_on_ray_as_shards_do_here(
    ray_cluster: None, name: str, mllm_folder: Path, tmp_path: Path
) -> None:
    raw, prepared = (
        with_override(config, "resources.cpus_per_worker", 0.5)
        for config in raw_and_prepared(name, tmp_path, mllm_folder)
    )
    run_local(prepared, tmp_path / "here", "run")
    run_on_ray([Job(raw, "run")], tmp_path / "ray")
    same_runs(tmp_path / "here" / "run", tmp_path / "ray" / "run")
