"""A real study of seconds, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, type_  # noqa: F401

TINY = """
base:
  data: {num_classes: [8, 3, 4], num_images: [4, 4, 4], classes_per_batch: 8, images_per_class: 2, pairs_per_batch: 4}
  optim.steps: 2
rows:
  pretrained: {method: pretrained, kind: pretrained}
  potential-field: {method: potential-field, kind: baseline}
tuning: {trials: 2, stop: [0.5, 1], space: {optim.lr_tower: {loguniform: [5e-5, 1e-3]}}}
blocks:
  - {name: main, rows: [pretrained, potential-field]}
"""
Type = Callable[..., Outcome]


@pytest.fixture
def tiny() -> Path:
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    return Path("tiny")


def test_a_study_is_done_once_and_goes_on(type_: Type, tiny: Path) -> None:  # noqa: F811
    words = ("study", "tiny.yaml", "--local", "--jobs", "1")
    said = type_(*words, "--dry-run")
    assert (said.code, said.out) == (0, "") and "0 runs are done, 3 are open, 1 wait for trials" in said.err
    assert not tiny.exists()
    said = type_(*words)
    assert said.code == 0 and "the study is complete" in said.err
    assert "| potential-field | baseline | 1 | " in said.out
    files = sorted(tiny.glob("*.json"))
    assert len(files) == 4 and (tiny / "results.md").is_file()
    assert list(Path("runs/tiny").iterdir()) == []  # weights and checkpoints are gone
    contents = {path.name: path.read_bytes() for path in files}
    assert all(json.loads(content)["status"] == "finished" for content in contents.values())
    gone = next(path for path in files if path.name.startswith("potential-field"))
    gone.unlink()
    said = type_(*words, "--keep-runs")
    assert said.code == 0 and gone.is_file() and len(list(Path("runs/tiny").iterdir())) == 1
    times = ("created", "seconds", "wall_s", "cpu_s")
    before, after = (
        {key: value for key, value in json.loads(content).items() if key not in times}
        for content in (contents.pop(gone.name), gone.read_bytes())
    )
    assert before == after
    assert contents == {name: (tiny / name).read_bytes() for name in contents}


def test_a_run_that_cannot_work_is_recorded_with_its_sentence(type_: Type, tiny: Path) -> None:  # noqa: F811
    text = TINY.replace("[pretrained, potential-field]}", "[pretrained], set: {data.image_size: 40}}")
    Path("tiny.yaml").write_text(text, encoding="utf-8")
    said = type_("study", "tiny.yaml", "--local", "--jobs", "1")
    [record] = [json.loads(path.read_bytes()) for path in tiny.glob("*.json")]
    assert (
        said.code == 1
        and "1 run failed" in said.err
        and record["status"] == "failed"
        and "image_size" in record["cause"]
    )
    assert "1 is open (1 of them failed before)" in said.err
    assert (
        f"failed: final pretrained, default, default, seed 0 ({record['cause']})" in (tiny / "results.md").read_text()
    )


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_records(type_: Type, tiny: Path) -> None:  # noqa: F811
    assert type_("study", "tiny.yaml", "--local", "--jobs", "1").code == 0
    here = {path.name: json.loads(path.read_bytes())["scores"] for path in tiny.glob("*.json")}
    for path in tiny.glob("*.json"):
        path.unlink()
    assert type_("study", "tiny.yaml", "--local", "--jobs", "2").code == 0
    assert here == {path.name: json.loads(path.read_bytes())["scores"] for path in tiny.glob("*.json")}


@pytest.mark.slow
def test_ray_gives_the_same_records(type_: Type, tiny: Path) -> None:  # noqa: F811
    assert type_("study", "tiny.yaml", "--local", "--jobs", "1").code == 0
    here = {path.name: json.loads(path.read_bytes())["scores"] for path in tiny.glob("*.json")}
    for path in tiny.glob("*.json"):
        path.unlink()
    assert type_("study", "tiny.yaml", "--jobs", "2").code == 0
    assert here == {path.name: json.loads(path.read_bytes())["scores"] for path in tiny.glob("*.json")}


def test_mistakes_are_sentences(type_: Type, tiny: Path) -> None:  # noqa: F811
    said = type_("study", "nowhere.yaml")
    assert said.code == 2 and said.last_line.startswith("nowhere.yaml: cannot be read")
    said = type_("study", "tiny.yaml", "--methods", "saga")
    assert said.code == 2 and "--methods: is given with a data set alone" in said.last_line
    said = type_("study", "demo", "--dry-run")
    assert said.code == 2 and "--dry-run: is given with a study file alone" in said.last_line
    said = type_("study", "tiny.yaml", "--block", "mian", "--dry-run")
    assert said.code == 2 and "did you mean 'main'?" in said.last_line
    said = type_("study", "tiny.yaml", "--dry-run", "--set", "data.num_shards=3")
    assert said.code == 2 and "data.num_shards: 3 must divide" in said.err
