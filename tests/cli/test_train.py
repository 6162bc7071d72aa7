"""`saga-ray train` and what follows it, in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Outcome

Type = Callable[..., Outcome]

WITHOUT_RAY = """
import sys
from importlib.abc import MetaPathFinder

class NoRay(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoRay())
from saga_ray.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_run_of_saga_works_without_ray_installed(tmp_path: Path) -> None:
    def type_without_ray(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_RAY, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=550,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    trained = type_without_ray("train", "demo", "--local", "--steps", "2", "--seed", "5", *SMALL)
    assert trained.returncode == 0, trained.stderr
    [metrics] = (tmp_path / "runs").glob("saga-*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["trainer/process"] == line["scorer/process"] for line in lines)
    board = type_without_ray("leaderboard", "demo", "--format", "json")
    [row] = json.loads(board.stdout)
    assert (row["method"], row["seeds"], row["split"]) == ("saga", [5], "test")


def test_a_finished_run_typed_again_does_nothing_and_says_so(type_: Type, tmp_path: Path) -> None:
    words = ("train", "demo", "--local", "--method", "pretrained", "--name", "mine", *SMALL)
    first = type_(*words)
    assert first.code == 0, first.err
    assert first.out.startswith("recall@1 ")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    second = type_(*words)
    assert (second.code, second.out) == (0, first.out)
    assert "was finished before; nothing was done" in second.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == files
    other = type_(*words, "data.world_seed=1")
    assert other.code == 2
    assert "--name mine" in other.last_line and "data.world_seed: 0 there, 1 now" in other.last_line


def test_what_was_measured_can_be_measured_again(type_: Type, tmp_path: Path) -> None:
    trained = type_("train", "demo", "--local", "--method", "potential-field", "--steps", "1", "--name", "pf", *SMALL)
    assert trained.code == 0, trained.err
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    again = type_("evaluate", "runs/pf")
    assert (again.code, again.out) == (0, trained.out)
    assert "embedding" in again.err and "Equal to what runs/pf holds" in again.err
    other = type_("evaluate", "runs/pf", "--split", "validation")
    assert other.code == 0 and other.out != trained.out
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
    result = tmp_path / "runs" / "pf" / "result.json"
    row = json.loads(result.read_text())
    row["scores"]["recall@1"] = 1 - row["scores"]["recall@1"] / 2
    result.write_text(json.dumps(row))
    assert type_("evaluate", "runs/pf").code == 1


def test_own_pictures(type_: Type, pictures: Path) -> None:
    said = type_("train", "folder", "--local", "--method", "pretrained", "--data-root", str(pictures))
    assert said.code == 0, said.err
    [row] = json.loads(type_("leaderboard", "folder", "--format", "json").out)
    assert (row["dataset"], row["label"]) == ("folder", "pretrained")


def test_one_word_after_another_and_a_file_of_values(type_: Type, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("seed: 4\ndata: {world_seed: 2}\n")
    shown = type_("config", "show", "demo", "--config", "more.yaml", "--set", "grpo.group_size=3", "data.world_seed=5")
    assert shown.code == 0
    for line in ("seed: 4", "group_size: 3", "world_seed: 5"):
        assert line in shown.out


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"s3://bucket/runs?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()


def test_runs_can_lie_in_an_object_store(type_: Type, tmp_path: Path, bucket: str) -> None:
    from saga_ray.storage import Storage

    words = ("train", "demo", "--local", "--method", "potential-field", "--runs", bucket, "--name", "pf", *SMALL)
    trained = type_(*words, "optim.steps=2", "checkpoint.every_steps=1")
    assert trained.code == 0, trained.err
    run = Storage.open(bucket).child("pf")
    assert {"checkpoints", "config.yaml", "encoder", "metrics.jsonl", "result.json"} <= set(run.list())
    assert len(run.read("metrics.jsonl").splitlines()) == 2
    again = type_(*words, "optim.steps=2", "checkpoint.every_steps=1")
    assert (again.code, again.out) == (0, trained.out)
    assert "nothing was done" in again.err
    [row] = json.loads(type_("leaderboard", "demo", "--runs", bucket, "--format", "json").out)
    assert row["method"] == "potential-field"
    assert list(tmp_path.iterdir()) == []
