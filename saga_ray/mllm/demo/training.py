"""One training stage: fresh data at every step, resumed exactly, progress on stderr."""

import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Loss = Callable[[np.random.Generator, int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class StagePlan:
    """How long and how fast a stage learns."""

    name: str
    num_steps: int
    lr: float
    every_steps: int = 50
    """Steps between checkpoints and between progress lines' averages."""
    warmup_share: float = 0.05
    weight_decay: float = 0.02


def run_stage(
    plan: StagePlan,
    learner: nn.Module,
    groups: list[tuple[list[nn.Parameter], float]],
    loss: Loss,
    folder: Path,
    seed: int,
    stop_step: int | None = None,
) -> list[dict[str, float]]:
    """Train `learner` in place; typed again, go on where the last checkpoint ended.

    The data of a step is drawn from (seed, stage, step), so an interrupted stage ends in the same weights.

    Args:
        plan: length and rate of the stage.
        learner: everything whose state is kept.
        groups: lists of parameters, each with its factor on the learning rate.
        loss: from a generator and the step's number to the loss and what to log.
        folder: receives `<stage>.safetensors` and `<stage>.json`.
        seed: of the data.
        stop_step: end early at this step, as an interruption would (after a checkpoint).

    Returns:
        One entry per progress line: step, seconds and means of the logged numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "lr": plan.lr * factor, "base": plan.lr * factor} for parameters, factor in groups],
        betas=(0.9, 0.98),
        weight_decay=plan.weight_decay,
    )
    start, curve = _resume(plan, learner, optimiser, folder)
    sums: dict[str, float] = {}
    since_s, count = time.perf_counter(), 0
    stage_key = zlib.crc32(plan.name.encode())
    for step in range(start, plan.num_steps if stop_step is None else min(stop_step, plan.num_steps)):
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * _schedule(step, plan)
        value, numbers = loss(np.random.default_rng([seed, stage_key, step]), step)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for parameters, _ in groups for p in parameters], 1.0)
        if not torch.isfinite(value):
            raise RuntimeError(f"stage {plan.name}: the loss is {value.item()} at step {step}")
        optimiser.step()
        for name, number in {"loss": value.item(), **numbers}.items():
            sums[name] = sums.get(name, 0.0) + number
        count += 1
        if (step + 1) % plan.every_steps == 0 or step + 1 in (plan.num_steps, stop_step):
            means = {name: round(total / count, 4) for name, total in sums.items()}
            curve.append({"step": step + 1, "seconds": round(time.perf_counter() - since_s, 1), **means})
            told = "  ".join(f"{name} {number:g}" for name, number in curve[-1].items() if name != "step")
            print(f"{plan.name} {step + 1}/{plan.num_steps}  {told}", file=sys.stderr, flush=True)
            _save(plan, learner, optimiser, folder, step + 1, curve)
            sums, count, since_s = {}, 0, time.perf_counter()
    return curve


def _schedule(step: int, plan: StagePlan) -> float:
    """Linear warm-up, then a cosine down to 2 %."""
    warmup = max(1, int(plan.warmup_share * plan.num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, plan.num_steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * progress)))


def _save(plan, learner, optimiser, folder: Path, step: int, curve: list) -> None:
    tensors = {f"learner.{name}": tensor.contiguous() for name, tensor in _state(learner).items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor.contiguous() for name, tensor in state.items()}
    weights = folder / f"{plan.name}.safetensors"
    # Step and curve travel inside the weights file, so that one rename makes the whole checkpoint safe.
    about = {"step": step, "num_steps": plan.num_steps, "lr": plan.lr, "curve": curve}
    save_file(tensors, f"{weights}.new", metadata={"about": json.dumps(about)})
    os.replace(f"{weights}.new", weights)
    (folder / f"{plan.name}.json").write_text(json.dumps(about, indent=1), encoding="ascii")


def _resume(plan, learner, optimiser, folder: Path) -> tuple[int, list]:
    weights = folder / f"{plan.name}.safetensors"
    if not weights.exists():
        return 0, []
    about = read_about(weights)
    if (about["num_steps"], about["lr"]) != (plan.num_steps, plan.lr):
        raise ValueError(
            f"{weights}: was begun with {about['num_steps']} steps at rate {about['lr']:g}, now {plan.num_steps} at {plan.lr:g}; "
            f"give the same values, or another --work"
        )
    tensors = load_file(weights)
    load_learner(learner, tensors)
    state: dict[int, dict] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return about["step"], about["curve"]


def read_about(weights: Path) -> dict:
    """Step, plan and curve of a stage's checkpoint."""
    size = int.from_bytes(weights.open("rb").read(8), "little")
    header = json.loads(weights.open("rb").read(8 + size)[8:])
    return json.loads(header["__metadata__"]["about"])


def _state(learner: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; a tied one appears once."""
    return {name: parameter.detach() for name, parameter in learner.named_parameters()}


def load_learner(learner: nn.Module, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Copy into `learner` the checkpoint's parameters whose name begins with `prefix`."""
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name.startswith(prefix):
                parameter.copy_(tensors[f"learner.{name}"])
