"""Words that follow a verb."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from saga_ray.cli.options import split_words


def test_words_behind_set_are_told_from_the_argument() -> None:
    assert split_words(["demo", "grpo.group_size=4", "seed=1"], "data set") == ("demo", ["grpo.group_size=4", "seed=1"])
    assert split_words(["a.b=2", "demo"], "data set") == ("demo", ["a.b=2"])
    with pytest.raises(click.UsageError, match="Expected one data set, but it is missing"):
        split_words(["seed=1"], "data set")


def test_a_path_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    (tmp_path / "lr=3" / "w.yaml").write_text("space: {}")
    for path in ("lr=3/w.yaml", "./lr=3/w.yaml", str(tmp_path / "lr=3" / "w.yaml"), "not/there=1.yaml"):
        assert split_words([path, "seed=1"], "sweep file") == (path, ["seed=1"])
