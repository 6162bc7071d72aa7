"""The parts of the GPU bench, in the order in which they are worth having."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saga_ray.bench.flops import gemm_rate, gradient_flops
from saga_ray.bench.gpu_step import POLICY, Bench, Clock
from saga_ray.bench.random_mllm import random_mllm
from saga_ray.bench.work_shapes import WorkShape
from saga_ray.mllm.gradients import naive_score, score_shared
from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import answer_weights, group_advantages

WAYS = {
    "library": {"split": False, "fused": False},
    "fused": {"split": False, "fused": True},
    "two_part": {"split": True, "fused": True},
    "compiled": {"split": True, "fused": True, "compiled": True},
}
"""Switches for the decoder's passes: each keeps what stands before it."""
EAGER = ("library", "fused", "two_part")


def rates(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """What the chip does: products at the model's shapes, and copying."""
    size = bench.size.copy_mb * 2**20
    source, target = (torch.empty(size, dtype=torch.uint8, device=bench.device).random_() for _ in range(2))
    seconds = _seconds(bench, lambda: target.copy_(source))
    return {
        "gemm_flops": gemm_rate(
            bench.size.mllm, bench.size.gemm_rows, bench.device, bench.dtype, lambda work: _seconds(bench, work)
        ),
        "gemm_rows": bench.size.gemm_rows,
        "copy_bytes_per_s": 2 * size / seconds,
    }


def _seconds(bench: Bench, work: Callable[[], Any], repeats: int = 10) -> float:
    """Median of a few runs, by the device's own clock where it has one."""
    work()
    found = []
    for _ in range(repeats):
        if bench.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def error(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """Gradient of a few layers at full width: every way in the bench's dtype beside the naive twin in float32.

    The naive twin in the bench's own dtype says how much of it is that dtype's.
    """
    shape = dataclasses.replace(bench.size.mllm, num_layers=bench.size.small_depth)
    work = dataclasses.replace(bench.size.works["paper"], num_pairs=1, answer=min(96, bench.size.works["paper"].answer))
    generator = torch.Generator(bench.device).manual_seed(9)
    ids = torch.randint(8, shape.vocabulary, (work.group_size, work.answer), generator=generator, device=bench.device)
    completions = Completions(
        ids,
        torch.zeros_like(ids),
        torch.zeros(len(ids), device=bench.device),
        torch.zeros(len(ids), device=bench.device) > 0,
    )
    rewards = torch.arange(work.group_size, device=bench.device).remainder(2).double()[None]
    weights = answer_weights(group_advantages(rewards).flatten(), completions.token_ids_SR >= 0)
    policy = dataclasses.replace(POLICY, top_p=1.0)
    tokens = bench.tokens(work)
    grads: dict[str, Tensor] = {}
    for dtype in (torch.float32, bench.dtype):
        # Equal seeds draw other numbers in another dtype: one model is drawn, and widened.
        mllm = random_mllm(shape, bench.device, bench.dtype, seed=4)
        if dtype != bench.dtype:
            mllm.model.to(dtype)
        other = bench.around(mllm)
        layout, constant = other.layout(work)
        call = dict(pairs=[0], replay_support=False)
        naive = naive_score(mllm, layout, tokens.to(dtype), completions, weights, policy, **call)  # type: ignore[arg-type]
        grads[f"naive {dtype}"] = naive.token_grads_P2LTD.double()  # type: ignore[union-attr]
        for name in EAGER:
            other.switch(**WAYS[name])
            leaf = tokens.to(dtype).requires_grad_()
            constant = other.layout(work)[1]
            prefix = other.mllm.prefill(leaf, layout, constant)
            scored = score_shared(other.mllm, layout, prefix, leaf, completions, weights, policy, **call)  # type: ignore[arg-type]
            grads[f"{name} {dtype}"] = scored.token_grads_P2LTD.double()  # type: ignore[union-attr]
    del mllm, other
    bench.tidy()
    want = grads["naive torch.float32"]
    return {name: float((grad - want).norm() / want.norm()) for name, grad in grads.items() if grad is not want}


def sampling(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds per token of all answers: the plain loop and slots without graphs on short answers, graphs on whole ones."""
    work = bench.size.works["paper"]
    short = dataclasses.replace(work, answer=bench.size.short)
    out: dict[str, Any] = {"rows": work.num_pairs * work.group_size}
    best = best_way(bench, found)
    ways = (
        (best, "graphs", work),
        ("library", "graphs", work),
        ("library", "loop", short),
        (best, "slots", short),
    )
    for way, sampler, shape in ways:
        name = f"{way} {sampler} {shape.answer} tokens"
        out[name] = _guarded(partial(_sampled, bench, found, way, sampler, shape))
    return out


def _guarded(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as failure:  # the other ways are worth having
        return {"error": f"{type(failure).__name__}: {failure}"[:400]}


def _sampled(bench: Bench, found: dict[str, Any], way: str, sampler: str, work: WorkShape) -> dict[str, Any]:
    bench.switch(**WAYS[way])
    tokens = bench.tokens(work)
    prefix = bench.prefixes(work, tokens)
    first = Clock(bench.device)
    bench.sample(work, prefix, 0, way=sampler)
    first.lap("first")
    clock = Clock(bench.device)
    completions = bench.sample(work, prefix, 1, way=sampler)
    clock.lap("sample")
    assert int(completions.num_tokens_S.min()) == work.answer, "an answer ended"
    seconds = clock.seconds["sample"]
    bound = sampling_bytes(bench, work) / found["rates"]["copy_bytes_per_s"] if "rates" in found else None
    return {
        "first_s": first.seconds["first"],
        "s": seconds,
        "ms_per_token": 1e3 * seconds / work.answer,
        "bound_s": bound,
        "share_of_bound": bound / seconds if bound else None,
        "mean_nucleus": float(completions.support_SR.double().mean()),
        "widest_nucleus": int(completions.support_SR.max()),
    }


def sampling_bytes(bench: Bench, work: WorkShape) -> float:
    """Bytes that whole answers must read: all weights once per token, each pair's prefix once, each answer's own keys and values."""
    shape, item = bench.size.mllm, bench.dtype.itemsize
    weights = shape.num_layers * shape.layer_parameters + shape.vocabulary * shape.hidden
    per_token = 2 * shape.num_layers * shape.num_key_heads * shape.head_dim
    prefix = work.num_pairs * (work.prompt - 1) * per_token
    own = work.num_pairs * work.group_size * per_token * (work.answer + 1) / 2
    return item * work.answer * (weights + prefix + own)


def gradient(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of two pairs' gradient phase in every way, and the share of the products' rate that it reaches."""
    out: dict[str, Any] = {}
    for name, shape in bench.size.works.items():
        work = dataclasses.replace(shape, num_pairs=2)
        for way in EAGER:
            out[f"{name} {way}"] = _guarded(partial(_differentiated, bench, found, work, WAYS[way]))
    return out


def compiled(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """What torch.compile adds to gradient, sampling and the whole step; compiling takes long, so it comes behind."""
    if not bench.size.compile:
        return {"skipped": "not asked for"}
    work = bench.size.works["paper"]
    out: dict[str, Any] = {}
    two = dataclasses.replace(work, num_pairs=2)
    out["gradient paper"] = _guarded(partial(_differentiated, bench, found, two, WAYS["compiled"]))
    out["sampling graphs"] = _guarded(partial(_sampled, bench, found, "compiled", "graphs", work))
    out["step_paper"] = _guarded(partial(_whole_step, bench, "compiled", "paper"))
    return out


def _differentiated(bench: Bench, found: dict[str, Any], work: WorkShape, switches: dict[str, bool]) -> dict[str, Any]:
    bench.switch(**switches)
    tokens, completions = bench.tokens(work), random_completions(bench, work)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(bench.device)
    for name in ("first", "a", "b"):
        bench.gradient(work, tokens, completions, work.num_pairs)
        clock.lap(name)
    seconds = min(clock.seconds["a"], clock.seconds["b"])
    flops = work.num_pairs * gradient_flops(bench.size.mllm, work.before, work.own, work.answer, work.group_size)
    rate = found.get("rates", {}).get("gemm_flops")
    return {
        "s": seconds,
        "first_s": clock.seconds["first"],
        "tflops": flops / seconds / 1e12,
        "share_of_gemm_rate": flops / seconds / rate if rate else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else None,
    }


def random_completions(bench: Bench, work: WorkShape) -> Completions:
    """Answers that nobody sampled, drawn from nuclei of 100."""
    num_rows = work.num_pairs * work.group_size
    generator = torch.Generator(bench.device).manual_seed(8)
    size = (num_rows, work.answer)
    ids = torch.randint(8, bench.size.mllm.vocabulary, size, generator=generator, device=bench.device)
    zeros = torch.zeros(num_rows, dtype=torch.float64, device=bench.device)
    return Completions(ids, torch.full_like(ids, 100), zeros, zeros > 0)


def best_way(bench: Bench, found: dict[str, Any]) -> str:
    """The fastest way of the gradient phase that was measured."""
    parts = {way: found.get("gradient", {}).get(f"paper {way}", {}) for way in EAGER}
    parts["compiled"] = found.get("compiled", {}).get("gradient paper", {})
    seconds = {way: part["s"] for way, part in parts.items() if "s" in part}
    return min(seconds, key=lambda way: seconds[way]) if seconds else "fused"


def whole_step(name: str) -> Callable[[Bench, dict[str, Any]], dict[str, Any]]:
    """A part that measures whole training steps of one shape, in the best way found so far."""
    return lambda bench, found: _whole_step(bench, best_way(bench, found), name)


def _whole_step(bench: Bench, way: str, name: str) -> dict[str, Any]:
    work = bench.size.works[name]
    while True:
        bench.switch(**WAYS[way])
        try:
            return {"way": way} | _steps(bench, work)
        except torch.OutOfMemoryError:
            if work.num_pairs == 1:
                raise
            work = dataclasses.replace(work, num_pairs=work.num_pairs // 2)


def _steps(bench: Bench, work: WorkShape) -> dict[str, Any]:
    first = bench.step(work, 0, pairs_at_once=2)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    second = bench.step(work, 1, pairs_at_once=2)
    return {
        "num_pairs": work.num_pairs,
        "first": first,
        "seconds": second,
        "images_per_s": 2 * work.num_pairs / second["step"],
        "pairs_per_s": work.num_pairs / second["step"],
        "answers_per_s": work.num_pairs * work.group_size / second["step"],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else None,
    }


def profile(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """Where the time goes, by kernel: one pair's gradient and some tokens, before and after."""
    best = best_way(bench, found)
    return _profiled(bench, "before", "library", "loop") | _profiled(bench, "after", best, "graphs")


def _profiled(bench: Bench, title: str, way: str, sampler: str) -> dict[str, Any]:
    bench.switch(**WAYS[way])
    work = dataclasses.replace(bench.size.works["paper"], num_pairs=1)
    short = dataclasses.replace(bench.size.works["paper"], answer=16)
    tokens, completions = bench.tokens(work), random_completions(bench, work)
    prefix = bench.prefixes(short, bench.tokens(short))
    return {
        f"gradient {title} ({way})": _table(bench, lambda: bench.gradient(work, tokens, completions, 1)),
        f"16 tokens {title} ({way}, {sampler})": _table(bench, lambda: bench.sample(short, prefix, 0, way=sampler)),
    }


def _table(bench: Bench, work: Callable[[], Any]) -> list[str]:
    work()
    activities = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if bench.device.type == "cuda":
        activities, key = [*activities, torch.profiler.ProfilerActivity.CUDA], "self_device_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        Clock(bench.device)
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, key, 0))[:24]
    return [f"{getattr(row, key) / 1e3:10.2f} ms  {row.count:6d} x  {row.key[:110]}" for row in rows]


PARTS: dict[str, tuple[Callable[[Bench, dict[str, Any]], dict[str, Any]], float]] = {
    "rates": (rates, 5),
    "gradient": (gradient, 40),
    "step_paper": (whole_step("paper"), 40),
    "sampling": (sampling, 40),
    "error": (error, 15),
    "compiled": (compiled, 90),
    "step_compact": (whole_step("compact"), 20),
    "profile": (profile, 20),
}
"""Name to what is done, and the seconds that it needs at least; what is worth most comes first."""
