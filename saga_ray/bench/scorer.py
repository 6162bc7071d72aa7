"""How fast pairs become token gradients: the scorer beside its public twin, beside TRL, and beside what the processor can do."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from saga_ray.bench.flops import gemm_rate, gradient_flops
from saga_ray.bench.random_mllm import MLLMShape
from saga_ray.bench.scorer_work import Work, completions_of, make_work, naive, naive_gradient, ours
from saga_ray.bench.trl_peer import ENVIRONMENT, NoPeer, trl_peer
from saga_ray.bench.work_shapes import SHAPES, WorkShape
from saga_ray.train.progress import Progress, Silent
from saga_ray.types import ScoreResult


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    mllm: MLLMShape
    works: Mapping[str, WorkShape]
    num_rounds: int
    gemm_rows: int = 512
    max_s: float = 1300.0
    """Seconds after which no further round begins; never less than one round of each shape."""


FULL = Size(MLLMShape(512, 8, 8, 2, 64, 2048, 4096, 3, 64, 128, 2, (0, 1, 2)), SHAPES, num_rounds=3)
QUICK = Size(
    MLLMShape(64, 3, 4, 2, 16, 128, 512, 3, 32, 64, 2, (0, 1, 2)),
    {
        "compact": WorkShape((4, 4), before=8, between=3, after=4, answer=18, num_attributes=1, value=1, group_size=4),
        "paper": WorkShape((2, 2), before=20, between=3, after=4, answer=24, num_attributes=1, value=2, group_size=4),
    },
    num_rounds=1,
    gemm_rows=64,
)
"""Seconds: shows that all of it works, measures nothing of interest."""


def bench_scorer(size: Size, progress: Progress | None = None, trl_python: Path | None = None) -> dict[str, Any]:
    """Measure both shapes; contenders take turns within a round, so that what else the machine does meets all of them.

    Ratios are medians over rounds of the ratio within a round. Template answers have as many attributes and tokens as free ones; only
    their values (about a third of the tokens) and verdicts are drawn.

    Args:
        trl_python: The interpreter of TRL's environment; `.venv-bench` in the working directory by default.
    """
    progress = progress or Silent()
    python = trl_python or Path(ENVIRONMENT, "bin", "python").absolute()
    began = time.monotonic()
    report: dict[str, Any] = {}
    for place, (name, shape) in enumerate(size.works.items()):
        ends = began + size.max_s * (place + 1) / len(size.works)
        report[name] = _measured(size, name, shape, ends, progress, python)
    return report | {"machine": machine(size)}


def machine(size: Size) -> dict[str, Any]:
    """What it was measured on, and with."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load": list(os.getloadavg()),
        "mllm": dataclasses.asdict(size.mllm),
        "dtype": "float32",
    }


def _measured(size: Size, name: str, shape: WorkShape, ends: float, progress: Progress, python: Path) -> dict[str, Any]:
    progress.stage(f"{name}: warming up")
    work = make_work(size.mllm, shape)
    result, _ = ours(work, 0)
    template = make_work(size.mllm, shape, "template")
    ours(template, 0)
    contenders: dict[str, Callable[[int], dict[str, float]]] = {
        "ours": lambda number: ours(work, number)[1],
        "template": lambda number: ours(template, number)[1],
        "naive": lambda number: naive(work, completions_of(result))[1],
    }
    report: dict[str, Any] = {"shape": dataclasses.asdict(shape) | {"prompt": shape.prompt}}
    with contextlib.ExitStack() as stack:
        try:
            turn, versions = stack.enter_context(trl_peer(work, size.mllm.vocabulary, python))
            progress.stage(f"{name}: warming up TRL")
            turn()
            contenders["trl"] = lambda number: turn()
            report["trl"] = versions | {"differs": TRL_DIFFERS}
        except NoPeer as reason:
            report["trl"] = {"absent": str(reason)}
        rounds, rates = _rounds(size, name, contenders, ends, progress)
    report |= _ratios(size, shape, rounds, rates)
    progress.stage(f"{name}: gradient of the usual way")
    report["gradient_error"] = _gradient_error(work, result)
    progress.stage(f"{name}: answers in deterministic mode")
    report["differing_completions"] = _differing(size, shape, work)
    progress.stage(f"{name}: memory of both, in processes of their own")
    report |= _memory(size, name)
    return report


TRL_DIFFERS = (
    "TRL runs pixels through the (small) tower in every copy of a prompt and differentiates the tower's weights, ours takes tokens; "
    "it samples its own answers of the same length; no weight of the decoder is trainable in either"
)


def _rounds(
    size: Size, name: str, contenders: Mapping[str, Callable[[int], dict[str, float]]], ends: float, progress: Progress
) -> tuple[list[dict[str, dict[str, float]]], list[float]]:
    """Turns of all contenders, and the rate of matrix products in each round."""
    rounds: list[dict[str, dict[str, float]]] = []
    rates = []
    names = list(contenders)
    for number in range(size.num_rounds):
        began = time.monotonic()
        found = {}
        before = _rate(size)
        for who in names[number % len(names) :] + names[: number % len(names)]:
            progress.stage(f"{name}: round {number + 1} of {size.num_rounds}, {who}")
            found[who] = contenders[who](number + 1)
        rates.append((before + _rate(size)) / 2)
        rounds.append(found)
        if 2 * time.monotonic() - began > ends:
            break
    return rounds, rates


def _rate(size: Size) -> float:
    return gemm_rate(size.mllm, size.gemm_rows, torch.device("cpu"), torch.float32)


def _ratios(
    size: Size, shape: WorkShape, rounds: list[dict[str, dict[str, float]]], rates: list[float]
) -> dict[str, Any]:
    flops = shape.num_pairs * gradient_flops(size.mllm, shape.before, shape.own, shape.answer, shape.group_size)

    def against(who: str, phase: str, mine: str = "ours") -> float | None:
        if who not in rounds[0]:
            return None
        return round(statistics.median(r[who][phase] / r[mine][phase] for r in rounds), 3)

    seconds = {who: {phase: [round(r[who][phase], 4) for r in rounds] for phase in rounds[0][who]} for who in rounds[0]}
    bound = [r["ours"]["gradient"] * rate / flops for r, rate in zip(rounds, rates, strict=True)]
    return {
        "seconds": seconds,
        "gemm_gflops": [round(rate / 1e9, 1) for rate in rates],
        "gradient_gflop": round(flops / 1e9, 1),
        "speedup_vs_naive": against("naive", "step"),
        "speedup_vs_trl": against("trl", "step"),
        "speedup_template": against("ours", "step", "template"),
        "phases_vs_naive": {phase: against("naive", phase) for phase in ("sample", "gradient")},
        "phases_vs_trl": {phase: against("trl", phase) for phase in ("sample", "gradient")},
        "flop_bound_ratio": round(statistics.median(bound), 3),
    }


def _gradient_error(work: Work, result: ScoreResult) -> float:
    want = naive_gradient(work, completions_of(result)).token_grads_P2LTD
    assert want is not None
    return float((result.token_grads_P2LTD - want).norm() / want.norm())


def _differing(size: Size, shape: WorkShape, work: Work) -> float:
    """Share of answers that differ between the fast mode and the deterministic one (a pair alone, fixed threads)."""
    strict = make_work(size.mllm, shape, scorer__deterministic=True, scorer__threads=torch.get_num_threads())
    fast, fixed = (each.engine.score(each.request(1)).token_ids_PGR for each in (work, strict))
    return float((fast != fixed).any(dim=2).double().mean())


def _memory(size: Size, name: str) -> dict[str, Any]:
    """Peak memory of one gradient phase of each, in a fresh process."""
    found = {}
    quick = ["--quick"] if size is QUICK else []
    for path in ("shared", "naive"):
        command = [sys.executable, "-m", "saga_ray.bench.scorer_memory", "--path", path, "--shape", name, *quick]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        found[path] = float(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
    both = found["shared"] is not None and found["naive"]
    return {
        "peak_mb": found,
        "peak_memory_ratio": round(found["shared"] / found["naive"], 3) if both else None,  # type: ignore[operator]
    }
