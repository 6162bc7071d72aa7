"""Parameter groups, learning-rate schedule (a pure function of the step), and what a checkpoint keeps of the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from saga_ray.config import LossWeights, OptimConfig, RunConfig
from saga_ray.encoder.encoder import Encoder

BLOCKS = ("blocks", "layers", "layer", "stages")
"""What towers call the list of their blocks."""


def num_steps(config: RunConfig, num_images: int) -> int:
    """Optimiser steps of a run: `optim.steps`, else the epochs at the micro-batches that a step takes at least."""
    if config.encoder.trainable == "none":
        return 0
    if config.optim.steps is not None:
        return config.optim.steps
    micro_batches = 1 if config.grpo.refill else config.grpo.max_micro_batches
    return math.ceil(config.optim.epochs * num_images / (config.data.batch_size * micro_batches))


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Factor of the update that leads from `step` to `step` + 1: linear up over the warm-up, then half a cosine to 0."""
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def freeze_untrained(encoder: Encoder, config: RunConfig) -> None:
    """Leave a gradient only to the parts that `encoder.trainable` names.

    Raises:
        ValueError: for more blocks than the tower has.
    """
    chosen = config.encoder.trainable
    encoder.tower.requires_grad_(chosen == "all")
    encoder.pooler.requires_grad_(chosen != "none")
    for parameter in encoder.tower.new_parameters():
        parameter.requires_grad_(chosen != "none")
    if chosen == "norms":
        for module in encoder.tower.modules():
            if "Norm" in type(module).__name__:
                module.requires_grad_(True)
    if chosen.startswith("blocks:"):
        for parameter in last_blocks(encoder.tower, int(chosen.removeprefix("blocks:"))):
            parameter.requires_grad_(True)


def last_blocks(tower: nn.Module, num: int) -> list[nn.Parameter]:
    """Parameters of a tower's last `num` blocks and of all that is defined behind them (norms, mergers, projectors).

    Raises:
        ValueError: for a tower without a list of blocks, or with fewer.
    """

    def size(found: tuple[str, nn.Module]) -> int:
        return sum(parameter.numel() for parameter in found[1].parameters())

    lists = [
        (name, part)
        for name, part in tower.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential) and name.rpartition(".")[2] in BLOCKS
    ]
    name, blocks = max(lists, key=size, default=("", nn.ModuleList()))
    if len(blocks) < num:
        raise ValueError(
            f"encoder.trainable: blocks:{num}, but this tower has {len(blocks) or 'no list of'} blocks; choose "
            f"{'fewer, or ' if len(blocks) else ''}all"
        )
    named = list(tower.named_parameters())
    first = f"{name}.{len(blocks) - num}."
    start = next(place for place, (parameter_name, _) in enumerate(named) if parameter_name.startswith(first))
    return [parameter for _, parameter in named[start:]]


def freeze_unreached(encoder: Encoder, images_NHWC: torch.Tensor, weights: LossWeights, has_metric: bool) -> list[str]:
    """Freeze what no loss can reach (weight decay alone would move it), and name it.

    Without GRPO, for instance, nothing reaches the DeepStack mergers: the pooler reads level 0 alone.
    """
    encoded = encoder(images_NHWC)
    tokens_NLTD = encoded.tokens.tokens_NLTD
    goals = []
    if has_metric:
        goals.append(encoded.embedding_NE.sum())
    if max(weights.grpo, weights.reference_kl, weights.consensus, weights.anchor) > 0:
        goals.append(tokens_NLTD.sum())
    if weights.alignment > 0:
        goals.append(encoder.pooler.log_weights(tokens_NLTD[:, 0].detach()).sum())
    named = [(name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    # A goal may have no graph at all, as tokens of a frozen tower.
    goals = [goal for goal in goals if goal.requires_grad]
    parameters = [parameter for _, parameter in named]
    gradients = torch.autograd.grad(goals, parameters, allow_unused=True) if goals else [None] * len(named)
    unreached = [pair for pair, gradient in zip(named, gradients, strict=True) if gradient is None]
    for _, parameter in unreached:
        parameter.requires_grad_(False)
    return [name for name, _ in unreached]


def unreached_sentence(chosen: str, asked: Sequence[str], unreached: Sequence[str]) -> str | None:
    """What to say about parameters that `freeze_unreached` froze; None if there are none.

    Args:
        chosen: `encoder.trainable`.
        asked: Names of all that was to be trained.
        unreached: Those of them that no loss reaches.

    Raises:
        ValueError: if nothing of the tower is left, though `chosen` asks for some of it.
    """
    reached = set(asked) - set(unreached)
    # A run in which nothing at all would learn has a sentence of its own.
    if chosen not in ("pooler", "none") and reached and not any(name.startswith("tower.") for name in reached):
        raise ValueError(
            f"encoder.trainable: {chosen}, but no loss of this run reaches any of the tower's parameters that this names; name "
            f"more of it (all, or more blocks), set encoder.trainable=pooler, or give a loss that reaches it a weight"
        )
    if not unreached:
        return None
    parts = list(dict.fromkeys(name.rpartition(".")[0] for name in unreached))
    more = f" and {len(parts) - 3} more modules" if len(parts) > 3 else ""
    return (
        f"encoder.trainable: {chosen}, but no loss of this run reaches {len(unreached)} of these {len(asked)} tensors "
        f"(those of {', '.join(parts[:3])}{more}); they stay as they are"
    )


def build_optimizer(encoder: Encoder, metric_loss: nn.Module | None, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with a group for tower, pooler and the metric loss's own parameters; biases, norms and proxies do not decay."""
    groups = []
    proxies = [] if metric_loss is None else list(metric_loss.parameters())
    new = encoder.tower.new_parameters()
    of_new = set(map(id, new))
    tower = [parameter for parameter in encoder.tower.parameters() if id(parameter) not in of_new]
    for name, parameters, rate, decay in (
        ("tower", tower, config.lr_tower, config.weight_decay),
        ("pooler", [*new, *encoder.pooler.parameters()], config.lr_pooler, config.weight_decay),
        ("proxies", proxies, config.lr_proxies, 0.0),
    ):
        for decays, members in _by_decay(parameters):
            group = {"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay if decays else 0.0}
            groups.append(group | {"name": name})
    assert groups, "nothing to train"
    return torch.optim.AdamW(groups, betas=config.betas)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Scale every group's own rate by `factor`; returns the rates by `optim/lr_<group>`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return {f"optim/lr_{group['name']}": group["lr"] for group in optimizer.param_groups}


def _by_decay(parameters: Iterable[nn.Parameter]) -> list[tuple[bool, list[nn.Parameter]]]:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    split = [(True, [p for p in trainable if p.ndim > 1]), (False, [p for p in trainable if p.ndim <= 1])]
    return [(decays, members) for decays, members in split if members]


def optimizer_tensors(
    trainable: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """What AdamW remembers of every parameter, as `<what>.<parameter>`, for a checkpoint."""
    return {
        f"{key}.{name}": value for name, parameter in trainable for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    trainable: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give AdamW what `optimizer_tensors` kept."""
    for name, parameter in trainable:
        keys = [key.removesuffix(f".{name}") for key in tensors if key.endswith(f".{name}")]
        state = {key: tensors[f"{key}.{name}"] for key in keys if "." not in key}
        # AdamW keeps its step count on the CPU, its moments beside the parameter.
        optimizer.state[parameter] = {
            key: value.clone() if key == "step" else value.to(parameter) for key, value in state.items()
        }
