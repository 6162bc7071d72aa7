"""What it costs to ask the frozen MLLM behind Ray Serve, beside asking it in this process: the same requests, in turn."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from saga_ray.config import RunConfig
from saga_ray.train.progress import Progress, Silent
from saga_ray.types import Scorer, ScoreRequest, ScoreResult


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    num_rounds: int
    """Requests, each asked in both places."""
    least_s: float
    """Seconds that a request takes at least in this process; pairs are added until it does."""
    most_pairs: int = 256


FULL = Size(num_rounds=15, least_s=1.0)
QUICK = Size(num_rounds=2, least_s=0.0)
"""Seconds: shows that all of it works, measures nothing of interest."""


def bench_serve(size: Size, progress: Progress | None = None, config: RunConfig | None = None) -> dict[str, Any]:
    """Measure with one thread in both places; starts a cluster of its own, or joins the one that is there.

    Both places take turns within a round, first one, then the other; an overhead is the median of those of the rounds. One
    thread, because two that wait for each other measure what else the machine does.

    Args:
        config: of the run that asks; the demo's by default.

    Returns:
        `overhead` (remote seconds over local ones, less 1), `overhead_s` (their difference), `seconds` of both, `request` (its
        pairs, and bytes each way), `differing_answers` (share of answers whose last bits led to other words) and `num_cores`.
    """
    progress = progress or Silent()
    config = config or _config()
    import torch

    from saga_ray.machine import num_cpus
    from saga_ray.scorer.local import LocalScorer, build_engine

    torch.set_num_threads(1)
    progress.stage("loading the frozen MLLM")
    local = LocalScorer(build_engine(config))
    base = _large_enough(_request(config), local, size)
    progress.stage("starting Ray and its replica")
    with _remote(config) as remote:
        remote.score(replace(base, seed=10**6))  # both are warm before the clock starts
        local.score(replace(base, seed=10**6))
        rounds = []
        for number in range(size.num_rounds):
            progress.step(number, size.num_rounds, {})
            rounds.append(_round(replace(base, seed=number), local, remote, number % 2 == 1))
        progress.step(size.num_rounds, size.num_rounds, {})
    return _report(base, rounds, config) | {"num_cores": num_cpus()}


def _config() -> RunConfig:
    from saga_ray.configure import resolve

    # Few pictures are drawn; the request is the recipe's.
    return resolve("demo", overrides={"data.num_classes": [20, 4, 4], "data.num_images": [6, 4, 4]})


def _request(config: RunConfig) -> ScoreRequest:
    """The first micro-batch of a run, through the initial encoder."""
    import torch

    from saga_ray.data import load_dataset
    from saga_ray.data.planning.plan import PairPlanner
    from saga_ray.data.planning.stream import micro_batches
    from saga_ray.encoder.encoder import build_encoder

    data = config.data.model_copy(update={"hard_share": 0.0})
    table = load_dataset(config).train
    batch = next(micro_batches(table, PairPlanner(table.labels_N, data, 0), data, 0, 0, 1, 0, 1))
    with torch.no_grad():
        tokens = build_encoder(config).encode_tokens(torch.from_numpy(batch.images_NHWC))
    return ScoreRequest(config.seed, batch.index, batch.pairs, tokens)


def _large_enough(request: ScoreRequest, local: Scorer, size: Size) -> ScoreRequest:
    pairs = request.pairs
    while True:
        asked = replace(request, pairs=tuple(replace(pair, number=n) for n, pair in enumerate(pairs)))
        local.score(asked)
        began = time.perf_counter()
        local.score(replace(asked, seed=10**6 + 1))
        if time.perf_counter() - began >= size.least_s or 2 * len(pairs) > size.most_pairs:
            return asked
        pairs = pairs * 2


@contextlib.contextmanager
def _remote(config: RunConfig) -> Iterator[Scorer]:
    from saga_ray.on_ray.cluster import connect
    from saga_ray.on_ray.remote import remote_scorer
    from saga_ray.on_ray.serve import scorer_service

    with connect([config]) as cluster, scorer_service([config], replace(cluster, num_cores=1)) as app:
        assert app is not None
        yield remote_scorer(app, config)


@dataclass(frozen=True)
class _Round:
    local_s: float
    remote_s: float
    local: ScoreResult
    remote: ScoreResult


def _round(request: ScoreRequest, local: Scorer, remote: Scorer, remote_first: bool) -> _Round:
    found: dict[bool, tuple[float, ScoreResult]] = {}
    for is_remote in (remote_first, not remote_first):
        began = time.perf_counter()
        result = (remote if is_remote else local).score(request)
        found[is_remote] = time.perf_counter() - began, result
    return _Round(found[False][0], found[True][0], found[False][1], found[True][1])


def _report(request: ScoreRequest, rounds: list[_Round], config: RunConfig) -> dict[str, Any]:
    from saga_ray.scorer import wire
    from saga_ray.scorer.parts import split_request

    (sent,) = split_request(request, 1)
    dtype = rounds[0].remote.token_grads_P2LTD.dtype
    answers = [
        one == other
        for found in rounds
        for here, there in zip(found.local.texts_PG, found.remote.texts_PG, strict=True)
        for one, other in zip(here, there, strict=True)
    ]
    return {
        "overhead": round(statistics.median(r.remote_s / r.local_s for r in rounds) - 1, 4),
        "overhead_s": round(statistics.median(r.remote_s - r.local_s for r in rounds), 4),
        "seconds": {
            "local": [round(r.local_s, 4) for r in rounds],
            "remote": [round(r.remote_s, 4) for r in rounds],
        },
        "request": {
            "pairs": len(request.pairs),
            "answers_per_pair": config.grpo.group_size,
            "images": len(sent.tokens),
            "bytes_sent": _bytes(wire.request_to_arrays(wire.rounded_request(sent, dtype))),
            "bytes_received": _bytes(wire.result_to_arrays(rounds[0].remote)),
        },
        "differing_answers": round(1 - sum(answers) / len(answers), 4),
    }


def _bytes(arrays: dict[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values())
