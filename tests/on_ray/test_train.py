"""Runs on Ray Train against the same runs in one process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from saga_ray.config import RunConfig
from saga_ray.configure import resolve, to_yaml, with_override
from saga_ray.on_ray import train as train_module
from saga_ray.on_ray.bulletin import Bulletin
from saga_ray.on_ray.train import Job, run_on_ray
from saga_ray.train.context import LocalContext
from saga_ray.train.errors import NonFiniteError
from saga_ray.train.local import run_local
from tests.data.trees import class_folders
from tests.on_ray.conftest import SMALL

TIMINGS = ("seconds", "trainer/process", "scorer/process")


def _override(config: RunConfig, **values: object) -> RunConfig:
    for key, value in values.items():
        config = with_override(config, key.replace("__", "."), value)
    return config


def _weights(runs: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(runs / name / "encoder" / "model.safetensors")


def _steps(runs: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]


def _numbers(line: dict) -> dict:
    return {key: value for key, value in line.items() if not key.startswith(TIMINGS)}


class Heard:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[int] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def part(self, done: int, of: int) -> None:
        pass

    def step(self, step: int, num_steps: int, metrics: dict) -> None:
        self.steps.append(step)


@pytest.fixture(scope="module")
def rows(ray_cluster: None, small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    """A baseline, SAGA and SAGA with class consensus in one group of workers on the cluster; the last two in this process too."""
    runs = tmp_path_factory.mktemp("runs")
    baseline = _override(small_config, loss__weights__grpo=0.0, loss__weights__alignment=0.0)
    # Fed keys and punctuation: a random MLLM would write nothing to tally.
    consensus = _override(
        small_config, loss__weights__consensus=1.0, consensus__refresh_steps=2, prompt__answers="template"
    )
    heard = Heard()
    results = run_on_ray(
        [Job(baseline, "baseline"), Job(small_config, "saga"), Job(consensus, "consensus")], runs, heard
    )
    assert [result.name for result in results] == ["baseline", "saga", "consensus"]
    run_local(small_config, runs / "local", "saga")
    run_local(consensus, runs / "local", "consensus")
    return runs, heard


@pytest.mark.parametrize("name, key", [("saga", "grpo/contributing_pairs"), ("consensus", "loss/consensus")])
def test_one_worker_on_ray_equals_one_process_bit_for_bit(rows: tuple[Path, Heard], name: str, key: str) -> None:
    runs, _ = rows
    here, there = _steps(runs / "local", name), _steps(runs, name)
    assert [_numbers(line) for line in here] == [_numbers(line) for line in there]
    assert any(line.get(key, 0) > 0 for line in there), "the case must not be empty"
    local, remote = _weights(runs / "local", name), _weights(runs, name)
    assert local.keys() == remote.keys()
    assert all(torch.equal(local[name], remote[name]) for name in local)


def test_the_scorer_is_another_process_on_ray_and_the_same_one_locally(rows: tuple[Path, Heard]) -> None:
    runs, _ = rows
    assert all(line["trainer/process"] == line["scorer/process"] for line in _steps(runs / "local", "saga"))
    for line in _steps(runs, "saga"):
        assert line["scorer/process"] and line["trainer/process"] != line["scorer/process"]
    assert all(line["scorer/process"] == "" for line in _steps(runs, "baseline"))


def test_one_group_of_workers_trains_all_rows(rows: tuple[Path, Heard]) -> None:
    runs, _ = rows
    trainers = {line["trainer/process"] for name in ("baseline", "saga", "consensus") for line in _steps(runs, name)}
    assert len(trainers) == 1
    assert len(list((runs / "results").glob("*.json"))) == 3


def test_progress_reaches_the_driver_in_order(rows: tuple[Path, Heard]) -> None:
    _, heard = rows
    assert heard.steps == [1, 2, 3] * 3
    assert any(stage.startswith("saga (2 of 3): ") for stage in heard.stages)


def test_nothing_of_ours_is_left_after_a_run(rows: tuple[Path, Heard]) -> None:
    from ray import serve
    from ray.util.state import list_actors

    runs, _ = rows
    assert not serve.status().applications
    alive = [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]
    assert not [name for name in alive if "Scorer" in name or "Bulletin" in name or "TrainController" in name]
    assert not [path for path in runs.iterdir() if path.name.startswith(".ray-")]


def test_a_finished_run_typed_again_does_nothing(rows: tuple[Path, Heard], small_config: RunConfig) -> None:
    runs, _ = rows
    before = (runs / "saga" / "metrics.jsonl").read_bytes()
    [again] = run_on_ray([Job(small_config, "saga")], runs)
    assert again.was_finished
    assert (runs / "saga" / "metrics.jsonl").read_bytes() == before


def test_another_config_under_the_name_is_refused_before_ray_starts(
    rows: tuple[Path, Heard], small_config: RunConfig
) -> None:
    runs, _ = rows
    with pytest.raises(ValueError, match=r"grpo\.group_size"):
        run_on_ray([Job(_override(small_config, grpo__group_size=5), "saga")], runs)


def test_two_workers_equal_one_after_five_steps(ray_cluster: None, small_config: RunConfig, tmp_path: Path) -> None:
    exact = _override(small_config, mllm__dtype="float64", optim__steps=5, loss__metric="proxy-anchor")
    exact = _override(exact, grpo__group_size=3, evaluation__batch_size=8)
    run_local(exact, tmp_path / "one", "saga")
    run_on_ray([Job(_override(exact, resources__num_workers=2), "saga")], tmp_path / "two")
    for one, two in zip(_steps(tmp_path / "one", "saga"), _steps(tmp_path / "two", "saga"), strict=True):
        for key, value in _numbers(one).items():
            assert two[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
    one, two = _weights(tmp_path / "one", "saga"), _weights(tmp_path / "two", "saga")
    for name in one:
        assert one[name].dtype == torch.float64
        error = (one[name] - two[name]).norm() / one[name].norm().clamp_min(1e-30)
        assert error < 1e-8, name


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["trainer", "scorer"])
def test_a_process_killed_at_work_changes_nothing_but_time(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path, whose: str
) -> None:
    class Killer(Heard):
        """Ends the process once, between two checkpoints."""

        def step(self, step: int, num_steps: int, metrics: dict) -> None:
            super().step(step, num_steps, metrics)
            if self.steps == [1, 2, 3]:
                os.kill(int(metrics[f"{whose}/process"].rsplit(":", 1)[1]), signal.SIGKILL)

    longer = _override(small_config, optim__steps=12)
    run_local(longer, tmp_path / "local", "saga")
    killer = Killer()
    run_on_ray([Job(longer, "saga")], tmp_path / "ray", killer)
    here, there = _steps(tmp_path / "local", "saga"), _steps(tmp_path / "ray", "saga")
    assert [_numbers(line) for line in here] == [_numbers(line) for line in there]
    assert len({line[f"{whose}/process"] for line in there}) == 2, "it was not ended before the last step"
    local, remote = _weights(tmp_path / "local", "saga"), _weights(tmp_path / "ray", "saga")
    assert all(torch.equal(local[name], remote[name]) for name in local)


@pytest.mark.slow
def test_a_run_whose_service_is_taken_away_stops_at_a_checkpoint_and_goes_on_from_there(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path
) -> None:
    from saga_ray.on_ray.cluster import connect
    from saga_ray.on_ray.standing import start_service, stop_service

    class Stopper(Heard):
        """Takes the service away between two checkpoints."""

        def step(self, step: int, num_steps: int, metrics: dict) -> None:
            super().step(step, num_steps, metrics)
            if step == 3:
                stop_service("passing")

    longer = _override(small_config, optim__steps=12, scorer__service="passing")
    run_local(longer, tmp_path / "local", "saga")
    with connect([longer]) as cluster:
        start_service(longer, cluster, "passing")
        with pytest.raises(
            ValueError, match=r"scorer\.service: passing is gone; the run stopped at its last checkpoint"
        ):
            run_on_ray([Job(longer, "saga")], tmp_path / "ray", Stopper())
        assert list((tmp_path / "ray" / "saga" / "checkpoints").iterdir())
        start_service(longer, cluster, "passing")
        again = Heard()
        run_on_ray([Job(longer, "saga")], tmp_path / "ray", again)
        stop_service("passing")
    assert again.steps[0] > 1, "it went on"
    here, there = _steps(tmp_path / "local", "saga"), _steps(tmp_path / "ray", "saga")
    assert [_numbers(line) for line in here] == [_numbers(line) for line in there]


def test_a_sentence_of_a_worker_comes_back_as_it_is(ray_cluster: None, small_config: RunConfig, tmp_path: Path) -> None:
    idle = _override(small_config, loss__metric="none", loss__weights__grpo=0.0, loss__weights__alignment=0.0)
    with pytest.raises(ValueError, match=r"^loss\.metric: none with .* leaves nothing to learn") as caught:
        run_on_ray([Job(idle, "idle")], tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "idle" / "result.json").exists()


def test_a_librarys_error_in_a_worker_is_no_sentence(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_job(*args: object, **more: object) -> None:
        np.zeros(3).reshape(2, 2)

    # The worker's function in this process: patches would not reach another one.
    monkeypatch.setattr(train_module, "run_job", run_job)
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_size=lambda: 1))
    monkeypatch.setattr("saga_ray.train.context.TorchContext", LocalContext)
    board = Bulletin.remote()
    told = {"jobs": [(to_yaml(small_config), "run")], "runs": str(tmp_path), "app": None, "board": board}
    with pytest.raises(ValueError, match="cannot reshape"):
        train_module._worker({**told, "folder": os.getcwd(), "num_cores": 1, "data_group": {}})
    assert ray.get(board.refusal.remote()) is None
    ray.kill(board)


@pytest.mark.slow
def test_numbers_that_stop_being_numbers_are_told_apart_from_other_sentences(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path
) -> None:
    config = _override(small_config, loss__weights__grpo=0.0, loss__weights__alignment=0.0, optim__warmup_share=0.0)
    config = _override(config, optim__lr_tower=1e30, resources__num_workers=2)
    with pytest.raises(NonFiniteError, match=r"^\S+ is (nan|inf) at step \d: stopped before the update"):
        run_on_ray([Job(config, "broken")], tmp_path / "runs")


def test_a_folder_that_is_no_mllm_is_refused_before_anything_is_written(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^mllm\.path: ") as caught:
        run_on_ray([Job(_override(small_config, mllm__path=str(tmp_path / "empty")), "wrong")], tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "wrong").exists()


def test_what_no_node_can_hold_is_refused_with_the_keys(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"resources\.cpus_per_worker: 64 .* fits on no node"):
        run_on_ray([Job(_override(small_config, resources__cpus_per_worker=64), "wide")], tmp_path)
    with pytest.raises(ValueError, match=r"asks for 13 CPUs .*resources\.num_workers=2.* has 6 CPUs"):
        many = _override(small_config, resources__num_scorers=23, resources__num_workers=2)
        run_on_ray([Job(many, "many")], tmp_path)
    assert not list(tmp_path.glob("*/config.yaml"))


def test_a_broken_test_image_is_refused_before_ray_starts(mllm_folder: Path, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", dict.fromkeys("abcdef", 3))
    overrides = {**SMALL, "data.classes_per_batch": 2, "data.num_shards": 1, "data.root": str(root)}
    config = resolve("folder", method="potential-field", overrides={**overrides, "mllm.path": str(mllm_folder)})
    (root / "e" / "1.jpg").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"1 of 12 validation and test images cannot be read: .*/e/1\.jpg \(not JPEG"):
        run_on_ray([Job(config, "run")], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
