"""Configs, requests and engines around a small random MLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.types import ImagePair, ScoreOptions, ScoreRequest, ScoreResult, VisualTokens


def small_run_config(folder: str | Path, **overrides: Any) -> RunConfig:
    """A run on the small MLLM; `grpo__top_p=0.9` sets `grpo.top_p`."""
    values = {"mllm.path": str(folder), "grpo.group_size": 4, "grpo.max_new_tokens": 40}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return resolve("demo", overrides=values)


def small_request(
    num_pairs: int = 6,
    *,
    seed: int = 0,
    micro_batch: int = 3,
    dtype: torch.dtype = torch.float64,
    width: int = 64,
    options: ScoreOptions | None = None,
    **fields: Any,
) -> ScoreRequest:
    """Pairs of 8 images with random tokens (4 levels, 2 x 2); images are shared between pairs."""
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = torch.randn(8, 4, 4, width, generator=generator, dtype=torch.float64).to(dtype)
    pairs = tuple(ImagePair(i % 8, (3 * i + 1) % 8, i % 2 == 0, i) for i in range(num_pairs))
    return ScoreRequest(seed, micro_batch, pairs, VisualTokens(tokens, (2, 2)), options or ScoreOptions(), **fields)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def assert_gradient_is_the_derivative(
    engine: ScoringEngine, request: ScoreRequest, value: Callable[[ScoreResult], float] | None = None, rel: float = 1e-7
) -> None:
    """Of the first pair's tokens, against central differences of `value`: independent of any autograd.

    Args:
        value: What was differentiated, from what is found at moved tokens; by default the summed loss of sampled rewards.
    """
    result, pair = engine.score(request), request.pairs[0]
    grad = result.token_grads_P2LTD[0]
    value = value or (lambda moved: -float((moved.log_probs_PG * result.advantages_PG).sum()))
    direction = torch.randn(grad.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def loss(step: float) -> float:
        tokens = request.tokens.tokens_NLTD.clone()
        tokens[pair.first] += step * direction[0]
        tokens[pair.second] += step * direction[1]
        moved = replace(request, tokens=replace(request.tokens, tokens_NLTD=tokens))
        return value(engine.score(moved))

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert numeric == pytest.approx(float((grad * direction).sum()), rel=rel)
