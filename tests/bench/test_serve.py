"""Ray Serve beside this process: what the report says, and that both were asked the same."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saga_ray.bench import serve
from saga_ray.bench.serve import QUICK, bench_serve
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.types import ScoreRequest, ScoreResult
from tests.helpers.small_mllm import small_mllm_folder
from tests.train.small import small_run_config


class Slower:
    """A scorer that takes longer by a known time, and remembers what it was asked."""

    def __init__(self, scorer: LocalScorer, by_s: float) -> None:
        self.scorer, self.by_s, self.seeds = scorer, by_s, []

    def score(self, request: ScoreRequest) -> ScoreResult:
        import time

        self.seeds.append(request.seed)
        time.sleep(self.by_s)
        return self.scorer.score(request)


def test_the_overhead_is_that_of_the_slower_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    config = small_run_config(small_mllm_folder(tmp_path / "mllm"), grpo__max_new_tokens=10)
    remote = Slower(LocalScorer(build_engine(config)), 0.5)

    @contextlib.contextmanager
    def slower(config: Any) -> Any:
        yield remote

    monkeypatch.setattr(serve, "_remote", slower)
    report = bench_serve(replace(QUICK, num_rounds=3), config=config)
    assert remote.seeds[1:] == [0, 1, 2], "every round another request"
    assert report["overhead_s"] > 0.3
    ratios = [r / s for r, s in zip(report["seconds"]["remote"], report["seconds"]["local"], strict=True)]
    assert report["overhead"] == pytest.approx(statistics.median(ratios) - 1, abs=0.01)
    assert report["differing_answers"] == 0
    assert report["request"]["pairs"] == 8 and report["request"]["bytes_sent"] > report["request"]["images"] * 4 * 64


@pytest.mark.slow
def test_the_bench_runs_on_ray() -> None:
    report = bench_serve(QUICK)
    assert len(report["seconds"]["remote"]) == 2 and report["request"]["pairs"] >= 8
