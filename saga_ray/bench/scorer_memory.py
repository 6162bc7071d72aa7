"""Peak memory of one pair's gradient phase above what the loaded model takes, in megabytes; a process of its own each time."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from saga_ray.bench.scorer import FULL, QUICK
from saga_ray.bench.scorer_work import Work, make_work, naive_gradient
from saga_ray.mllm.gradients import Policy, score_shared
from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import answer_weights, group_advantages


def main() -> None:
    """Print the megabytes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", choices=("shared", "naive"), required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--quick", action="store_true")
    told = parser.parse_args()
    size = QUICK if told.quick else FULL
    work = make_work(size.mllm, dataclasses.replace(size.works[told.shape], num_pairs=1))
    layout = work.layout
    constant = work.mllm.constant_prefix(layout)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(8, size.mllm.vocabulary, (work.shape.group_size, work.shape.answer), generator=generator)
    zeros = torch.zeros(len(ids), dtype=torch.float64)
    completions = Completions(ids, torch.full_like(ids, size.mllm.vocabulary), zeros, zeros > 0)
    before = peak_mb()
    if told.path == "naive":
        naive_gradient(work, completions)
    else:
        shared_gradient(work, completions, layout, constant)
    print(peak_mb() - before)


def shared_gradient(work: Work, completions: Completions, layout, constant) -> None:  # type: ignore[no-untyped-def]
    """The scorer's own way, with the prefix's forward pass."""
    tokens = work.tokens_NLTD[None].clone().requires_grad_()
    weights = answer_weights(group_advantages(work.rewards_PG).flatten(), completions.token_ids_SR >= 0)
    prefix = work.mllm.prefill(tokens, layout, constant)
    score_shared(
        work.mllm, layout, prefix, tokens, completions, weights, Policy(1.0, 1.0), pairs=[0], replay_support=True
    )


def peak_mb() -> float:
    """The most that this process ever held (VmHWM), in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status; memory is measured on Linux only")


if __name__ == "__main__":
    main()
