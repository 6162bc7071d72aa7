from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from saga_ray.mllm.answers import Span
from saga_ray.storage import Storage
from saga_ray.train.completions import AllCompletions
from saga_ray.train.local import run_local
from saga_ray.train.logs import RunLog
from tests.train.small import small_run_config

SETTINGS = {"scorer__store_answers": True, "optim__steps": 3, "checkpoint__every_steps": 1, "grpo__max_new_tokens": 40}


def answers(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "completions.parquet").to_pylist()


class Killed(Exception):
    pass


class KillAfter:
    def __init__(self, last: int) -> None:
        self.last = last

    def stage(self, text: str) -> None:
        pass

    def part(self, done: int, of: int) -> None:
        pass

    def step(self, step: int, num_steps: int, metrics: Any) -> None:
        if step == self.last:
            raise Killed


@pytest.fixture(scope="module")
def whole(mllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run_local(small_run_config(mllm, **SETTINGS), runs, name="run")
    return runs / "run"


def test_every_answer_of_every_pair_is_stored_with_its_tokens_and_spans(whole: Path) -> None:
    rows = answers(whole)
    assert [(row["step"], row["pair"]) for row in rows] == [(step, pair) for step in (1, 2, 3) for pair in range(8)]
    spans = 0
    for row in rows:
        lists = ("texts", "rewards", "advantages", "verdicts", "well_formed", "num_tokens", "token_ids", "spans")
        assert {len(row[name]) for name in lists} == {4}
        assert [len(ids) for ids in row["token_ids"]] == row["num_tokens"]
        assert row["rewards"] == [float(v == row["same_class"]) if v >= 0 else 0.0 for v in row["verdicts"]]
        for text, found in zip(row["texts"], row["spans"], strict=True):
            for span in (Span(**each) for each in found):
                assert span.image in (1, 2) and '"' not in text[span.start : span.stop]
                spans += text[span.start : span.stop] in ("hooked", "straight", "barred", "plain")
    assert spans > 40


@pytest.mark.parametrize("politely", [True, False])
def test_a_run_that_was_killed_has_each_row_once_in_the_end(
    whole: Path, mllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, politely: bool
) -> None:
    """Politely: the log is still closed, and a part behind the last checkpoint stays; otherwise what waited is gone."""
    config = small_run_config(mllm, **SETTINGS)
    with monkeypatch.context() as patched:
        if not politely:
            patched.setattr(RunLog, "close", lambda self: None)
        with pytest.raises(Killed):
            run_local(config, tmp_path, name="run", progress=KillAfter(2))
    assert {row["step"] for row in answers(tmp_path / "run")} == ({1, 2} if politely else {1})
    run_local(config, tmp_path, name="run")
    assert answers(tmp_path / "run") == answers(whole)


def test_many_rows_become_parts_before_a_checkpoint_and_half_a_file_is_never_seen(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga_ray.train.completions.MAX_COMPLETED_PAIRS", 10)
    rows, run = answers(whole), Storage.open(tmp_path)
    log = AllCompletions(run, 0)
    for step in (1, 2, 3):
        log.add(step, [row for row in rows if row["step"] == step])
    assert run.list("completions.parquet") == [f"steps-0000000{n}-0000000{n}.parquet" for n in (1, 2)]
    (tmp_path / "completions.parquet" / ".tmp-cut").write_bytes(b"PAR1")  # as a kill within a write leaves it
    log.sync()
    log.sync()
    assert answers(tmp_path) == rows
    AllCompletions(run, 1)  # goes on from step 1
    assert {row["step"] for row in answers(tmp_path)} == {1}


def test_a_run_with_template_answers_teaches_every_signal(mllm: Path, tmp_path: Path) -> None:
    config = small_run_config(
        mllm, "saga+consensus", prompt__answers="template", grpo__normalisation="rloo", loss__weights__reference_kl=0.1,
        grpo__reference_kl="k1-in-reward", optim__steps=2, scorer__store_answers=True, grpo__max_new_tokens=40,
    )  # fmt: skip
    run_local(config, tmp_path, name="run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["grpo/malformed_share"] == 0.0 and line["grpo/tokens_per_answer"] == 5.0
        assert line["gradient/grpo"] > 0 and line["gradient/consensus"] > 0
        assert (line["gradient/reference_kl"] > 0) == (line["step"] > 1), "the first step starts at the reference"
    assert all(len(found) == 4 for row in answers(tmp_path / "run") for found in row["spans"])
