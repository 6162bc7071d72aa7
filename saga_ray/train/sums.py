"""What a step adds up over pairs, tokens and ranks, and the numbers that are logged from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from saga_ray.config import RunConfig
from saga_ray.rl.grpo import Normalisation, loss_units
from saga_ray.train.context import RunContext
from saga_ray.train.replay import SIGNALS, Chosen, Scored
from saga_ray.types import ScoreResult

_NAMES = (
    "pairs", "answers", "tokens", "reward", "malformed", "silent", "chosen", "chosen_units", "grpo", "attributes",
    "reference_kl", "taught", "consensus", "scored",
)  # fmt: skip


def step_sums(scored: list[Scored], chosen: list[Chosen], normalisation: Normalisation = "dapo") -> dict[str, float]:
    """Sums over this rank's pairs: of all that were scored, of the chosen ones, and of the lessons."""
    sums = dict.fromkeys(_NAMES, 0.0)
    for each in scored:
        _add(sums, {"scored": sum(float(result.counters.get("num_tokens", 0.0)) for result in each.results)})
        if each.result is not None:
            _add(sums, _of_result(each.result))
        if each.lesson is not None:
            lesson = each.lesson.result
            _add(sums, {"taught": lesson.num_taught_P.sum(), "consensus": lesson.loss_P.sum()})
    for each in chosen:
        result = scored[each.place].result
        assert result is not None
        of_pair = {
            "chosen": 1,
            "chosen_units": loss_units(result.num_tokens_PG[each.pair : each.pair + 1], normalisation).sum(),
            "grpo": result.loss_P[each.pair],
            "attributes": result.attention_count_P2[each.pair].sum(),
        }
        _add(sums, of_pair)
    return sums


def _of_result(result: ScoreResult) -> dict[str, float | torch.Tensor]:
    return {
        "pairs": len(result.rewards_PG),
        "answers": result.rewards_PG.numel(),
        "tokens": result.num_tokens_PG.sum(),
        "reward": result.rewards_PG.sum(),
        "malformed": (~result.well_formed_PG.bool()).sum(),
        "silent": (~result.contributes_P).sum(),
        "reference_kl": 0.0 if result.reference_kl_P is None else result.reference_kl_P.sum(),
    }


def _add(sums: dict[str, float], more: Mapping[str, float | torch.Tensor]) -> None:
    for name, value in more.items():
        sums[name] += float(value)


def over_ranks(sums: Mapping[str, float], context: RunContext) -> dict[str, float]:
    """The sums of all ranks, which must agree on the names."""
    if not sums:
        return {}
    (total,) = context.all_reduce_sum([torch.tensor(list(sums.values()), dtype=torch.float64, device=context.device)])
    return dict(zip(sums, total.tolist(), strict=True))


def step_metrics(
    metric_losses: Sequence[float],
    anchor_losses: Sequence[float],
    sums: Mapping[str, float],
    geometry: Mapping[str, float],
    config: RunConfig,
) -> dict[str, float | str]:
    """The logged numbers of a step; `sums` is empty for methods that do not ask the MLLM."""
    weights = config.loss.weights
    losses = {"metric": sum(metric_losses) / len(metric_losses)}
    if weights.anchor > 0:
        losses["anchor"] = sum(anchor_losses) / len(anchor_losses)
    metrics: dict[str, float | str] = {
        "grpo/micro_batches": len(metric_losses),
        "gradient/metric": geometry["token_squared"] ** 0.5,
    }
    if sums:
        losses["grpo"] = sums["grpo"] / max(1.0, sums["chosen_units"])
        losses["alignment"] = geometry["alignment"] / max(1.0, sums["attributes"])
        if weights.reference_kl > 0:
            losses["reference_kl"] = sums["reference_kl"] / max(1.0, sums["tokens"])
        if weights.consensus > 0:
            losses["consensus"] = sums["consensus"] / max(1.0, sums["taught"])
        metrics["scorer/tokens"] = sums["scored"]
        metrics |= (_answers(sums) if sums["answers"] else {}) | _gradients(geometry)
    metrics |= {f"loss/{name}": value for name, value in losses.items()}
    metrics["loss/total"] = sum(getattr(weights, name) * value for name, value in losses.items())
    return metrics


def _answers(sums: Mapping[str, float]) -> dict[str, float]:
    return {
        "reward/mean": sums["reward"] / max(1.0, sums["answers"]),
        "grpo/zero_advantage_share": sums["silent"] / max(1.0, sums["pairs"]),
        "grpo/contributing_pairs": sums["chosen"],
        "grpo/malformed_share": sums["malformed"] / max(1.0, sums["answers"]),
        "grpo/tokens_per_answer": sums["tokens"] / max(1.0, sums["answers"]),
    }


def _gradients(geometry: Mapping[str, float]) -> dict[str, float]:
    """Lengths of the weighted gradients at the tokens, and their cosine with the metric gradient's.

    The cosine is over the images of a signal's own pairs: elsewhere one of the two is zero.
    """
    found = {}
    for signal in SIGNALS:
        if f"{signal}_squared" in geometry:
            found[f"gradient/{signal}"] = geometry[f"{signal}_squared"] ** 0.5
            product = (geometry[f"{signal}_metric_squared"] * geometry[f"{signal}_squared"]) ** 0.5
            if product > 0:
                name = "gradient/cosine" if signal == "grpo" else f"gradient/cosine_{signal}"
                found[name] = geometry[f"{signal}_dot"] / product
    return found


def scorer_seconds(scored: list[Scored]) -> dict[str, float | str]:
    """Seconds per stage inside the scorer, over this rank's requests, and the process that answered last."""
    found: dict[str, float | str] = {}
    for result in (result for each in scored for result in each.results):
        for name, value in result.counters.items():
            if name.startswith("seconds/"):
                stage = f"seconds/scorer/{name.removeprefix('seconds/')}"
                found[stage] = float(found.get(stage, 0.0)) + float(value)
        found["scorer/process"] = str(result.counters.get("process", ""))
    return found
