"""A small run for tests: the demo world at 32 pixels, a small random Qwen3-VL folder, and a scorer whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import micro_batches
from saga_ray.encoder.encoder import build_encoder
from saga_ray.train.losses import build_metric_loss
from saga_ray.train.step import Model
from saga_ray.types import Dataset, MicroBatch, Scorer, ScoreRequest, ScoreResult

SMALL = {
    "data.image_size": 32,
    "data.num_classes": [12, 4, 4],
    "data.num_images": [6, 3, 3],
    "data.classes_per_batch": 8,
    "data.images_per_class": 2,
    "data.num_shards": 4,
    "data.pairs_per_batch": 8,
    "grpo.group_size": 4,
    "grpo.contributing_pairs": 8,
    "scorer.deterministic": True,
    "evaluation.kmeans_restarts": 1,
}


def small_run_config(mllm: Path, method: str = "saga", **overrides: Any) -> RunConfig:
    """A config of seconds; `grpo__group_size=2` overrides `grpo.group_size`."""
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return resolve("demo", method=method, overrides=SMALL | {"mllm.path": str(mllm)} | changes)


def small_model(config: RunConfig, dataset: Dataset) -> Model:
    """Encoder and metric loss as a run starts with."""
    encoder = build_encoder(config)
    metric_loss = build_metric_loss(config.loss, len(dataset.train.class_names), encoder.tower.width, config.seed)
    reference = build_encoder(config).requires_grad_(False) if config.needs_reference else None
    return Model(encoder, None if metric_loss is None else metric_loss.to(encoder.tower.dtype), reference)


def stream(
    config: RunConfig, dataset: Dataset, start: int = 0, stop: int = 100, rank: int = 0, world_size: int = 1
) -> Iterator[MicroBatch]:
    """Micro-batches of a plan without a mining snapshot."""
    planner = PairPlanner(dataset.train.labels_N, config.data, config.seed, None)
    return micro_batches(dataset.train, planner, config.data, config.seed, start, stop, rank, world_size)


class KnownScorer:
    """Says of every pair what its number says; remembers what it was asked."""

    def __init__(self, contributes: Callable[[int, int], bool] = lambda micro_batch, number: True) -> None:
        self.contributes = contributes
        self.requests: list[ScoreRequest] = []

    def score(self, request: ScoreRequest) -> ScoreResult:
        self.requests.append(request)
        tokens_NLTD = request.tokens.tokens_NLTD
        assert not tokens_NLTD.requires_grad
        numbers = torch.tensor([pair.number for pair in request.pairs])
        speaks_P = torch.tensor([self.contributes(request.micro_batch, pair.number) for pair in request.pairs])
        positions_P2 = torch.tensor([(pair.first, pair.second) for pair in request.pairs])
        rewards_PG = torch.tensor([1.0, 0.0]).expand(len(numbers), 2) * speaks_P[:, None]
        num_tokens_PG = (3 + numbers)[:, None].expand(-1, 2)
        ramp_T = torch.arange(1.0, tokens_NLTD.shape[2] + 1)
        counts_P2 = torch.stack([numbers % 3, numbers % 2], dim=1)
        size = (1 + numbers) * speaks_P
        return ScoreResult(
            texts_PG=tuple(("yes", "no") for _ in numbers),
            token_ids_PGR=torch.full((len(numbers), 2, 1), -1),
            num_tokens_PG=num_tokens_PG,
            log_probs_PG=-num_tokens_PG.double(),
            rewards_PG=rewards_PG,
            advantages_PG=torch.tensor([1.0, -1.0]).expand(len(numbers), 2) * speaks_P[:, None],
            well_formed_PG=torch.ones(len(numbers), 2, dtype=torch.bool),
            verdicts_PG=torch.tensor([1, 0], dtype=torch.int8).expand(len(numbers), 2),
            contributes_P=speaks_P,
            loss_P=torch.zeros(len(numbers), dtype=torch.float64),
            num_taught_P=torch.zeros(len(numbers), dtype=torch.int64),
            token_grads_P2LTD=tokens_NLTD[positions_P2] * size[:, None, None, None, None],
            attention_sum_P2T=(ramp_T / ramp_T.sum()) * counts_P2[:, :, None],
            attention_count_P2=counts_P2,
            counters={"process": "known:1"},
        )

    def describe(self) -> dict[str, str]:
        return {"process": "known:1"}


class Elsewhere:
    """A scorer at work in another thread; remembers what was sent off and what was waited for, in order."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._pool = ThreadPoolExecutor(1)
        self.story: list[tuple[str, int]] = []

    def begin(self, request: ScoreRequest) -> Callable[[], ScoreResult]:
        self.story.append(("sent", request.micro_batch))
        answer = self._pool.submit(self._scorer.score, request)

        def result() -> ScoreResult:
            self.story.append(("waited", request.micro_batch))
            return answer.result()

        return result

    def score(self, request: ScoreRequest) -> ScoreResult:
        return self.begin(request)()

    def describe(self) -> dict[str, str]:
        return dict(self._scorer.describe())
