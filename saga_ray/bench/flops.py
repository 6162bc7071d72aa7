"""The bound of the gradient phase: the operations that it cannot do without, at the rate of this machine's matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from saga_ray.bench.random_mllm import MLLMShape


def visible_pairs(before: int, own: int, answer: int, group_size: int) -> int:
    """(query, key) pairs of one pair of images: its own prompt rows, and the rows of its answers, each causally."""
    prefix = own * before + own * (own + 1) // 2
    answers = group_size * (answer * (before + own) + answer * (answer + 1) // 2)
    return prefix + answers


def gradient_flops(shape: MLLMShape, before: int, own: int, answer: int, group_size: int) -> float:
    """Floating-point operations of one pair's gradient: forward, and backward to the inputs alone.

    4 N (P + G R) for the decoder's weights, with P the prompt's own tokens (the constant text is run once per run); attention
    has two products per visible (query, key) in the forward pass and four in the backward; the head 4 V D per answer token.
    """
    rows = own + group_size * answer
    decoder = 4.0 * shape.num_layers * shape.layer_parameters * rows
    seen = visible_pairs(before, own, answer, group_size)
    attention = 6.0 * 2 * shape.num_layers * shape.num_heads * shape.head_dim * seen
    head = 4.0 * shape.vocabulary * shape.hidden * group_size * answer
    return decoder + attention + head


def gemm_rate(
    shape: MLLMShape,
    num_rows: int,
    device: torch.device,
    dtype: torch.dtype,
    seconds: Callable[[Callable[[], None]], float] | None = None,
) -> float:
    """FLOP/s of the products of a decoder layer, forward and backward to the input, at `num_rows` rows of random numbers."""
    seconds = seconds or median_seconds
    operations, spent = 0.0, 0.0
    for fan_in, fan_out in sorted(set(shape.products)):
        times = shape.products.count((fan_in, fan_out))
        x = torch.randn(num_rows, fan_in, device=device, dtype=dtype)
        weight = torch.randn(fan_out, fan_in, device=device, dtype=dtype) / fan_in**0.5
        gradient = torch.randn(num_rows, fan_out, device=device, dtype=dtype)
        spent += times * seconds(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))  # type: ignore[misc]
        spent += times * seconds(lambda gradient=gradient, weight=weight: gradient @ weight)  # type: ignore[misc]
        operations += times * 4.0 * num_rows * fan_in * fan_out
    return operations / spent


def median_seconds(work: Callable[[], None], repeats: int = 7) -> float:
    """On the CPU, by the wall clock; the first run is not counted."""
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
