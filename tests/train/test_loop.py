import copy
import dataclasses
import functools
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saga_ray import load_encoder
from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import micro_batches
from saga_ray.leaderboard.store import ResultStore
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.storage import Storage
from saga_ray.train.context import LocalContext
from saga_ray.train.errors import NonFiniteError
from saga_ray.train.local import run_local
from saga_ray.train.loop import TrainResult, train
from saga_ray.train.naming import validation_questions
from saga_ray.train.run_folder import RunFolder
from saga_ray.types import Dataset, MicroBatch, Scorer
from tests.train.small import KnownScorer, small_run_config

STEPS = {"optim__steps": 5, "checkpoint__every_steps": 2}
TIMES = ("seconds", "process")


class Touched(Exception):
    """Somebody looked at true attributes."""


def _touched(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise Touched


class Untouchable:
    """In place of true attributes; no array, since numpy reads arrays without asking them."""

    __getattribute__ = __getitem__ = __setitem__ = __len__ = __iter__ = __contains__ = __bool__ = _touched
    __eq__ = __ne__ = __lt__ = __gt__ = __add__ = __sub__ = __array__ = __array_ufunc__ = __array_function__ = _touched
    __hash__ = __repr__ = __str__ = __reduce__ = __reduce_ex__ = __copy__ = __deepcopy__ = _touched


class Stopped(Exception):
    """The run was cut off from outside."""


class StopAfter:
    """Progress that cuts the run off after a step."""

    def __init__(self, last: int) -> None:
        self.last = last

    def stage(self, text: str) -> None:
        pass

    def part(self, done: int, of: int) -> None:
        pass

    def step(self, step: int, num_steps: int, metrics: Mapping[str, Any]) -> None:
        if step == self.last:
            raise Stopped


def _train(
    config: RunConfig, dataset: Dataset, runs: Path | str, name: str, scorer: Scorer | None = None, **more: Any
) -> TrainResult:
    def batches(start: int, stop: int, planner: PairPlanner) -> Iterator[MicroBatch]:
        return micro_batches(dataset.train, planner, config.data, config.seed, start, stop)

    scorer = scorer or (KnownScorer() if config.asks_the_mllm else None)
    context = LocalContext(torch.device("cpu"))
    return train(config, dataset, scorer, context, batches, RunFolder(Storage.open(runs), name), **more)


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(word in key for word in TIMES)} for line in lines]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / "model.safetensors")


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def config(mllm: Path) -> RunConfig:
    return small_run_config(mllm, **STEPS)


@pytest.fixture(scope="module")
def whole(config: RunConfig, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    runs = tmp_path_factory.mktemp("runs")
    _train(config, dataset, runs, "whole")
    return runs / "whole"


def test_a_run_without_the_mllm_can_be_watched_through_it_and_learns_the_same(
    mllm: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(validation_questions, num_pairs=4)
    monkeypatch.setattr("saga_ray.train.naming.validation_questions", few)
    nothing = {"loss__weights__grpo": 0.0, "loss__weights__alignment": 0.0}
    silent = small_run_config(mllm, optim__steps=2, **nothing)
    watched = silent.model_copy(update={"evaluation": silent.evaluation.model_copy(update={"watch_steps": 1})})
    assert watched.asks_the_mllm and not silent.asks_the_mllm and not watched.learns_from_the_mllm
    scorer = LocalScorer(build_engine(watched))
    _train(silent, dataset, tmp_path, "silent")
    _train(watched, dataset, tmp_path, "watched", scorer=scorer)
    lines = _lines(tmp_path / "watched")
    assert all(0 <= line["validation/verdict"] <= 1 for line in lines) and len(lines) == watched.optim.steps
    assert _equal(_weights(tmp_path / "silent"), _weights(tmp_path / "watched"))


def test_a_run_leaves_what_is_promised(whole: Path, config: RunConfig, dataset: Dataset) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "metrics.jsonl", "completions.parquet", "checkpoints", "result.json",
        "per_query.parquet", "encoder", "tensorboard",
    }  # fmt: skip
    assert [line["step"] for line in _lines(whole)] == [1, 2, 3, 4, 5]
    line = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert line["scorer/process"] == "known:1" and line["trainer/process"].rsplit(":", 1)[1].isdigit()
    rows = ResultStore(Storage.open(whole.parent)).load()
    assert [(row.run, row.split, row.method) for row in rows] == [("whole", "test", "saga")]
    assert json.loads((whole / "result.json").read_text())["scores"] == rows[0].scores
    images_NHWC = np.array(dataset.test.source.load(range(3), 32))
    assert load_encoder(whole)(images_NHWC).shape == (3, 64)


def test_environment_names_versions_but_no_place_on_this_machine(whole: Path) -> None:
    text = (whole / "environment.json").read_text()
    assert json.loads(text)["packages"]["torch"] == torch.__version__.split("+")[0]
    assert str(Path.home()) not in text and str(Path(__file__).parents[2]) not in text


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    whole: Path, config: RunConfig, dataset: Dataset, tmp_path: Path, cut: int
) -> None:
    with pytest.raises(Stopped):
        _train(config, dataset, tmp_path, "run", progress=StopAfter(cut))
    assert len(_lines(tmp_path / "run")) == cut
    result = _train(config, dataset, tmp_path, "run")
    assert _equal(_weights(tmp_path / "run"), _weights(whole))
    assert _lines(tmp_path / "run") == _lines(whole)
    assert result.scores == json.loads((whole / "result.json").read_text())["scores"]


def test_a_finished_run_typed_again_does_nothing_and_says_so(
    config: RunConfig, dataset: Dataset, tmp_path: Path
) -> None:
    first = _train(config, dataset, tmp_path, "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = run_local(config, tmp_path, "run")
    assert not first.was_finished and again.was_finished and again.scores == first.scores
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_config_under_a_taken_name_is_refused_naming_key_and_both_values(whole: Path, mllm: Path) -> None:
    other = small_run_config(mllm, **STEPS, grpo__group_size=6)
    with pytest.raises(ValueError, match=r"--name whole: .*grpo\.group_size: 4 there, 6 now"):
        run_local(other, whole.parent, "whole")


def test_a_run_of_other_files_under_a_taken_name_is_refused_naming_both_places_without_a_password(
    tmp_path: Path,
) -> None:
    def config(root: str) -> RunConfig:
        return resolve("folder", method="pretrained", overrides={"data.root": root})

    run = RunFolder(Storage.open(tmp_path), "pretrained-seed0")
    run.begin(config("s3://me:secret@bucket/birds"))
    with pytest.raises(
        ValueError, match=r"data\.root: s3://\*\*\*@bucket/birds there, /data/cars now\); choose another --name"
    ):
        run.state(config("/data/cars"))
    assert run.state(config("s3://me:secret@bucket/birds")) == "started"


def test_a_run_may_go_on_with_other_resources(whole: Path, mllm: Path) -> None:
    more = small_run_config(mllm, **STEPS, resources__num_scorers=3)
    assert run_local(more, whole.parent, "whole").was_finished


@pytest.mark.parametrize("file", ["encoder.safetensors", "manifest.json", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    whole: Path, config: RunConfig, dataset: Dataset, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        _train(config, dataset, tmp_path, "run", progress=StopAfter(5))
    newest = tmp_path / "run" / "checkpoints" / "step-00000004" / file
    newest.write_bytes(newest.read_bytes()[:-3])
    _train(config, dataset, tmp_path, "run")
    assert "step-00000004 is damaged" in caplog.text
    assert _equal(_weights(tmp_path / "run"), _weights(whole))
    assert _lines(tmp_path / "run") == _lines(whole)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again_unasked(
    config: RunConfig, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        _train(config, dataset, tmp_path, "run", progress=StopAfter(5))
    lines = _lines(tmp_path / "run")
    states = sorted((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    assert len(states) == 2
    for state in states:
        state.write_bytes(b"{")
    with pytest.raises(
        ValueError, match=r"run/checkpoints: no checkpoint can be read.*restore .* or delete "
    ) as caught:
        _train(config, dataset, tmp_path, "run")
    assert "\n" not in str(caught.value) and _lines(tmp_path / "run") == lines


def test_a_first_checkpoint_that_was_never_finished_is_no_reason_to_stop(
    whole: Path, config: RunConfig, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        _train(config, dataset, tmp_path, "run", progress=StopAfter(3))
    [manifest] = (tmp_path / "run" / "checkpoints").glob("*/manifest.json")
    manifest.unlink()
    _train(config, dataset, tmp_path, "run")
    assert _equal(_weights(tmp_path / "run"), _weights(whole)) and _lines(tmp_path / "run") == _lines(whole)


def test_a_gradient_that_is_not_a_number_ends_the_run_before_the_update(
    config: RunConfig, dataset: Dataset, tmp_path: Path
) -> None:
    class Broken(KnownScorer):
        def score(self, request: Any) -> Any:
            result = super().score(request)
            if len(self.requests) == 4:
                result.token_grads_P2LTD[0] = float("nan")
            return result

    with pytest.raises(NonFiniteError, match="gradient/total is nan at step 4"):
        _train(config, dataset, tmp_path, "run", scorer=Broken())
    assert [line["step"] for line in _lines(tmp_path / "run")] == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000002"]
    assert not (tmp_path / "run" / "result.json").exists()


def test_runs_may_lie_behind_a_uri(whole: Path, config: RunConfig, dataset: Dataset, tmp_path: Path) -> None:
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    # Not of type "local", as an object store: files grow elsewhere and are copied.
    storage = Storage(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "runs", "remote://bucket/runs")

    def batches(start: int, stop: int, planner: PairPlanner) -> Iterator[MicroBatch]:
        return micro_batches(dataset.train, planner, config.data, config.seed, start, stop)

    def go(progress: StopAfter | None = None) -> TrainResult:
        context = LocalContext(torch.device("cpu"))
        return train(config, dataset, KnownScorer(), context, batches, RunFolder(storage, "run"), progress)

    assert not storage.is_local
    with pytest.raises(Stopped):
        go(StopAfter(3))
    assert go().stored == "added" and go().was_finished
    assert _equal(_weights(tmp_path / "runs" / "run"), _weights(whole))
    assert _lines(tmp_path / "runs" / "run") == _lines(whole)


def test_a_run_by_file_uri_and_by_path_are_the_same_run(config: RunConfig, dataset: Dataset, tmp_path: Path) -> None:
    _train(config, dataset, tmp_path.as_uri(), "run")
    assert run_local(config, tmp_path, "run").was_finished


def test_pretrained_is_evaluated_without_a_step(mllm: Path, dataset: Dataset, tmp_path: Path) -> None:
    result = run_local(small_run_config(mllm, "pretrained"), tmp_path, "run")
    assert result.num_steps == 0 and result.stored == "added" and result.row["frozen"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_method_without_losses_is_refused_in_a_sentence(mllm: Path, dataset: Dataset, tmp_path: Path) -> None:
    config = small_run_config(mllm, "potential-field", loss__metric="none", optim__steps=3)
    with pytest.raises(ValueError, match=r"loss\.metric: none .*leaves nothing to learn"):
        run_local(config, tmp_path, "run")
    assert not (tmp_path / "run").exists()


def test_saga_runs_whole_in_one_process(mllm: Path, tmp_path: Path) -> None:
    config = small_run_config(mllm, optim__steps=2)
    result = run_local(config, tmp_path, "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.num_steps == len(lines) == 2
    assert all(line["trainer/process"] == line["scorer/process"] for line in lines)
    assert any(line["grpo/contributing_pairs"] > 0 for line in lines)


@pytest.mark.parametrize("method", ["saga+consensus", "potential-field+alignment+reference-kl"])
def test_a_run_goes_through_with_the_half_precision_of_a_gpu(
    mllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Tokens are bfloat16 there and the pooler's parameters float32; here autocast on the CPU stands for the GPU's."""
    monkeypatch.setattr(
        "saga_ray.encoder.encoder.Encoder.autocast", lambda _: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    result = run_local(small_run_config(mllm, method, optim__steps=2), tmp_path, "run")
    assert result.num_steps == 2 and result.scores["map@r"] > 0


def test_true_attributes_are_read_by_nothing_that_trains_or_evaluates(
    mllm: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real engine, and for every split."""
    config = small_run_config(mllm, optim__steps=2)
    undisturbed = run_local(config, tmp_path / "one", "run")
    hidden = {
        name: dataclasses.replace(table, truth_NA=Untouchable())
        for name, table in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))
    }
    truth_NA = hidden["train"].truth_NA
    looks = [len, list, np.asarray, np.unique, torch.as_tensor, pickle.dumps, copy.copy, bool]
    for look in (*looks, lambda truth: truth[0], lambda truth: truth.shape, lambda truth: truth == 1):
        with pytest.raises(Touched):
            look(truth_NA)
    monkeypatch.setattr("saga_ray.train.local.load_dataset", lambda _: dataclasses.replace(dataset, **hidden))
    result = run_local(config, tmp_path / "two", "run")
    assert result.scores == undisturbed.scores
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert _equal(_weights(one), _weights(two)) and _lines(one) == _lines(two)
    assert (one / "per_query.parquet").read_bytes() == (two / "per_query.parquet").read_bytes()
    assert any(line["grpo/contributing_pairs"] > 0 for line in _lines(one)), "the case must not be empty"
