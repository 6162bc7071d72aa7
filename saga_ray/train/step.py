"""One step: search for pairs whose answers disagree, then add up all gradients. The weights change nowhere in here.

Search: up to M micro-batches, each giving its metric gradient and its candidates to the scorer, until K pairs contribute
(over all ranks, in plan order, surplus dropped). Replay: the chosen images once more through the tower, now carrying the
scorer's token gradients. Everything is summed over ranks once, at the end, so that ranks may differ in what they do in
between; tokens and pairs are summed and divided by the counts of the whole step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saga_ray.config import RunConfig
from saga_ray.encoder.encoder import Encoder
from saga_ray.train.alignment import alignment_loss_sum
from saga_ray.train.context import RunContext, gather_rows
from saga_ray.train.errors import check_finite
from saga_ray.types import MicroBatch, ScoreOptions, Scorer, ScoreRequest, ScoreResult, VisualTokens

REPLAY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of replayed to scored tokens, relative to the largest token; bfloat16 autocast gets 0.05."""


@dataclass(frozen=True)
class Model:
    """What is trained."""

    encoder: Encoder
    metric_loss: nn.Module | None

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters with a gradient, in a fixed order; the metric loss's own start with `metric_loss.`."""
        parts = [("encoder", self.encoder), ("metric_loss", self.metric_loss)]
        named = [(f"{part}.{name}", p) for part, net in parts if net is not None for name, p in net.named_parameters()]
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]


@dataclass(frozen=True)
class Scored:
    """This rank's part of one micro-batch, as the scorer saw it."""

    batch: MicroBatch
    tokens: VisualTokens
    """Detached."""
    metric_grads_NTD: Tensor | None
    """Gradient of the weighted metric loss at level 0 of the tokens."""
    result: ScoreResult


@dataclass(frozen=True)
class Chosen:
    """A contributing pair of this rank: which micro-batch of the step, which of its pairs."""

    place: int
    pair: int


@dataclass(frozen=True)
class Search:
    """This rank's micro-batches of a step."""

    scored: list[Scored]
    metric_losses: list[float]
    token_squared: float
    """Squared length of the weighted metric gradient at all tokens, summed over micro-batches."""


@dataclass
class StepReport:
    """What a step found: numbers for the log, and this rank's scored pairs."""

    metrics: dict[str, float | str]
    num_micro_batches: int
    scored: list[Scored] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)


class Clock:
    """Seconds per stage of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def accumulate_gradients(
    model: Model,
    batches: Iterator[MicroBatch],
    scorer: Scorer | None,
    config: RunConfig,
    context: RunContext,
    step: int,
) -> StepReport:
    """Leave the gradient of the whole step, over all ranks, in `.grad` of every trainable parameter.

    Args:
        batches: this rank's rows of the plan, in order; as many are taken as the step needs.
        step: number of the step, counted from 1; for messages.

    Raises:
        NonFiniteError: on every rank alike, if a loss is not finite.
    """
    clock = Clock()
    trainable = model.trainable()
    for _, parameter in trainable:
        parameter.grad = None
    found = _search(model, batches, scorer, config, context, step, clock)
    scored, metric_losses = found.scored, found.metric_losses
    num_micro_batches = len(metric_losses)
    for _, parameter in trainable:
        if parameter.grad is not None:
            parameter.grad /= num_micro_batches
    chosen = _choose(scored, config.grpo.contributing_pairs, context)
    # Sums over this rank's pairs and tokens; every mean below is a ratio of two of them, over all ranks.
    sums = _sums(scored, chosen) if scorer is not None else {}
    sums = _over_ranks(sums, context)
    clock.lap("score")
    geometry = {"token_squared": found.token_squared / num_micro_batches**2}
    if scorer is not None:
        geometry |= _replay(model, scored, chosen, config, sums, num_micro_batches)
    geometry = _over_ranks(geometry, context)
    clock.lap("replay")
    _reduce(trainable, context)
    clock.lap("reduce")
    metrics = _metrics(metric_losses, sums, geometry, config)
    for quantity in ("loss/metric", "loss/grpo", "loss/alignment"):
        check_finite(quantity, float(metrics.get(quantity, 0.0)), step)
    metrics |= {f"seconds/{stage}": seconds for stage, seconds in clock.seconds.items()}
    metrics |= _scorer_seconds(scored)
    if scored:
        metrics["scorer/process"] = str(scored[-1].result.counters.get("process", ""))
    return StepReport(metrics, num_micro_batches, scored, chosen)


def _scorer_seconds(scored: list[Scored]) -> dict[str, float]:
    """Seconds per stage inside the scorer, over this rank's requests."""
    seconds: dict[str, float] = {}
    for each in scored:
        for name, value in each.result.counters.items():
            if name.startswith("seconds/"):
                stage = f"seconds/scorer/{name.removeprefix('seconds/')}"
                seconds[stage] = seconds.get(stage, 0.0) + float(value)
    return seconds


def score_options(config: RunConfig) -> ScoreOptions:
    """Ask only for what a loss will use."""
    weights = config.loss.weights
    return ScoreOptions(gradient=weights.grpo > 0, attention=weights.alignment > 0)


def _search(
    model: Model,
    batches: Iterator[MicroBatch],
    scorer: Scorer | None,
    config: RunConfig,
    context: RunContext,
    step: int,
    clock: Clock,
) -> Search:
    """Take micro-batches until enough pairs contribute; metric gradients add up in `.grad`."""
    scored: list[Scored] = []
    metric_losses: list[float] = []
    num_contributing, token_squared = 0, 0.0
    while len(metric_losses) < config.grpo.max_micro_batches:
        batch = next(batches, None)
        clock.lap("data")
        if batch is None:
            break
        tokens, metric_grads_NTD, loss = _metric_gradient(model, batch, config, context)
        check_finite("loss/metric", loss, step)
        if metric_grads_NTD is not None:
            token_squared += float(metric_grads_NTD.double().square().sum())
        metric_losses.append(loss)
        clock.lap("encode")
        if scorer is not None:
            request = ScoreRequest(config.seed, batch.index, batch.pairs, tokens, score_options(config))
            result = scorer.score(request)
            scored.append(Scored(batch, tokens, metric_grads_NTD, result))
            num_contributing += sum(context.gather(int(result.contributes_P.sum())))
            clock.lap("score")
        if config.grpo.refill and (scorer is None or num_contributing >= config.grpo.contributing_pairs):
            break
    assert metric_losses, f"no micro-batch is left for step {step}"
    return Search(scored, metric_losses, token_squared)


def _metric_gradient(
    model: Model, batch: MicroBatch, config: RunConfig, context: RunContext
) -> tuple[VisualTokens, Tensor | None, float]:
    """Add a micro-batch's metric gradient to `.grad`; returns its tokens, their gradient at level 0, and the loss.

    The loss is that of the whole batch over all ranks. Every rank computes it alike and differentiates its own rows, so
    the encoder's gradients add up over ranks to the full one, while each rank holds the full gradient of the proxies.
    """
    images_NHWC = torch.from_numpy(batch.images_NHWC).to(context.device)
    weight = config.loss.weights.metric
    if model.metric_loss is None:
        with torch.no_grad():
            return model.encoder.encode_tokens(images_NHWC), None, 0.0
    tokens = model.encoder.encode_tokens(images_NHWC)
    tokens_NLTD = tokens.tokens_NLTD
    if tokens_NLTD.requires_grad:
        tokens_NLTD.retain_grad()
    embedding_NE, _ = model.encoder.pool(tokens)
    labels_N = torch.from_numpy(batch.labels_N).to(context.device)
    loss = model.metric_loss(own_rows_with_graph(context, embedding_NE), gather_rows(context, labels_N))
    value = float(loss.detach())
    if loss.requires_grad:
        (weight * loss).backward()
    grads_NTD = tokens_NLTD.grad[:, 0] if tokens_NLTD.grad is not None else None
    return VisualTokens(tokens_NLTD.detach(), tokens.grid_hw), grads_NTD, value


def own_rows_with_graph(context: RunContext, rows: Tensor) -> Tensor:
    """Rows of all ranks, of which only this rank's carry a graph."""
    if context.world_size == 1:
        return rows
    everyone, num = gather_rows(context, rows.detach()), rows.shape[0]
    return torch.cat([everyone[: context.rank * num], rows, everyone[(context.rank + 1) * num :]])


def _choose(scored: list[Scored], num_wanted: int, context: RunContext) -> list[Chosen]:
    """This rank's share of the first `num_wanted` contributing pairs in plan order over all ranks."""
    mine = [
        (place, each.batch.pairs[pair].number, pair)
        for place, each in enumerate(scored)
        for pair in each.result.contributes_P.nonzero().flatten().tolist()
    ]
    everyone = sorted((place, number) for rank in context.gather(mine) for place, number, _ in rank)
    wanted = {tuple(each) for each in everyone[:num_wanted]}
    return [Chosen(place, pair) for place, number, pair in sorted(mine) if (place, number) in wanted]


def _sums(scored: list[Scored], chosen: list[Chosen]) -> dict[str, float]:
    """Sums over this rank's pairs: of all that were scored, and of the chosen ones."""
    sums = dict.fromkeys(
        (
            "pairs",
            "answers",
            "tokens",
            "reward",
            "malformed",
            "silent",
            "chosen",
            "chosen_tokens",
            "grpo",
            "attributes",
        ),
        0.0,
    )
    for each in scored:
        result = each.result
        sums["pairs"] += len(each.batch.pairs)
        sums["answers"] += result.rewards_PG.numel()
        sums["tokens"] += float(result.num_tokens_PG.sum())
        sums["reward"] += float(result.rewards_PG.sum())
        sums["malformed"] += float((~result.well_formed_PG.bool()).sum())
        sums["silent"] += float((~result.contributes_P).sum())
    for each in chosen:
        result = scored[each.place].result
        sums["chosen"] += 1
        sums["chosen_tokens"] += float(result.num_tokens_PG[each.pair].sum())
        sums["grpo"] -= float(
            (result.advantages_PG[each.pair].double() * result.log_probs_PG[each.pair].double()).sum()
        )
        sums["attributes"] += float(result.attention_count_P2[each.pair].sum())
    return sums


def _over_ranks(sums: Mapping[str, float], context: RunContext) -> dict[str, float]:
    if not sums:
        return {}
    (total,) = context.all_reduce_sum([torch.tensor(list(sums.values()), dtype=torch.float64, device=context.device)])
    return dict(zip(sums, total.tolist(), strict=True))


def _replay(
    model: Model,
    scored: list[Scored],
    chosen: list[Chosen],
    config: RunConfig,
    sums: Mapping[str, float],
    num_micro_batches: int,
) -> dict[str, float]:
    """Add this rank's alignment and GRPO gradients to `.grad`; returns its sums for loss and gradient geometry."""
    out = {"alignment": 0.0, "metric_squared": 0.0, "grpo_squared": 0.0, "dot": 0.0}
    if not chosen:
        return out
    weights = config.loss.weights
    roots: list[Tensor] = []
    root_grads: list[Tensor | None] = []
    if weights.alignment > 0 and sums["attributes"] > 0:
        loss = _alignment(model, scored, chosen)
        out["alignment"] = float(loss.detach())
        roots.append(loss * (weights.alignment / sums["attributes"]))
        root_grads.append(None)
    if weights.grpo > 0:
        images = _unique_images(scored, chosen)
        grads_NLTD = _grpo_token_grads(scored, chosen, images) * (weights.grpo / sums["chosen_tokens"])
        out |= _geometry(scored, images, grads_NLTD, num_micro_batches)
        if config.encoder.trainable == "all":
            roots.append(_replayed_tokens(model, scored, images))
            root_grads.append(grads_NLTD.to(roots[-1].dtype))
    wanted = [(root, grad) for root, grad in zip(roots, root_grads, strict=True) if root.requires_grad]
    if wanted:
        torch.autograd.backward([root for root, _ in wanted], [grad for _, grad in wanted])
    return out


def _alignment(model: Model, scored: list[Scored], chosen: list[Chosen]) -> Tensor:
    """Sum of the alignment loss over this rank's chosen pairs; tokens are detached, so that only the pooler learns."""
    tokens_P2TD, sums_P2T, counts_P2 = [], [], []
    for each in chosen:
        of = scored[each.place]
        pair = of.batch.pairs[each.pair]
        tokens_P2TD.append(of.tokens.tokens_NLTD[[pair.first, pair.second], 0])
        sums_P2T.append(of.result.attention_sum_P2T[each.pair])
        counts_P2.append(of.result.attention_count_P2[each.pair])
    tokens = torch.stack(tokens_P2TD).to(model.encoder.tower.dtype)
    log_weights_P2T = model.encoder.pooler.log_weights(tokens.flatten(0, 1)).view(len(chosen), 2, -1)
    device = log_weights_P2T.device
    return alignment_loss_sum(torch.stack(sums_P2T).to(device), torch.stack(counts_P2).to(device), log_weights_P2T)[0]


def _unique_images(scored: list[Scored], chosen: list[Chosen]) -> dict[tuple[int, int], int]:
    """Images of the chosen pairs as (micro-batch of the step, position), each once, to their row in the replay."""
    images: dict[tuple[int, int], int] = {}
    for each in chosen:
        pair = scored[each.place].batch.pairs[each.pair]
        for position in (pair.first, pair.second):
            images.setdefault((each.place, position), len(images))
    return images


def _grpo_token_grads(scored: list[Scored], chosen: list[Chosen], images: Mapping[tuple[int, int], int]) -> Tensor:
    """d(sum over pairs of the GRPO loss) / d tokens of each image, added up over the pairs that show it."""
    like = scored[0].tokens.tokens_NLTD
    grads_NLTD = like.new_zeros(len(images), *like.shape[1:], dtype=torch.promote_types(like.dtype, torch.float32))
    for each in chosen:
        pair = scored[each.place].batch.pairs[each.pair]
        for side, position in enumerate((pair.first, pair.second)):
            grads_NLTD[images[each.place, position]] += (
                scored[each.place].result.token_grads_P2LTD[each.pair, side].to(grads_NLTD)
            )
    return grads_NLTD


def _replayed_tokens(model: Model, scored: list[Scored], images: Mapping[tuple[int, int], int]) -> Tensor:
    """Tokens of the chosen images with their graph, checked against those that were scored."""
    device = scored[0].tokens.tokens_NLTD.device
    pixels = [torch.from_numpy(scored[place].batch.images_NHWC[position]) for place, position in images]
    expected_NLTD = torch.stack([scored[place].tokens.tokens_NLTD[position] for place, position in images])
    tokens_NLTD = model.encoder.encode_tokens(torch.stack(pixels).to(device)).tokens_NLTD
    difference = (tokens_NLTD.detach() - expected_NLTD).abs().max() / expected_NLTD.abs().max()
    tolerance = REPLAY_TOLERANCE.get(tokens_NLTD.dtype, 0.05)
    if model.encoder.device.type == "cuda" and tokens_NLTD.dtype == torch.float32:
        tolerance = 0.05  # merger outputs may be float32 after bfloat16 products
    assert difference <= tolerance, f"replayed tokens differ from the scored ones by {float(difference):.2e}"
    return tokens_NLTD


def _geometry(
    scored: list[Scored], images: Mapping[tuple[int, int], int], grads_NLTD: Tensor, num_micro_batches: int
) -> dict[str, float]:
    """Squared lengths and dot product of the weighted GRPO and metric gradients at the tokens of the chosen images."""
    out = {"metric_squared": 0.0, "grpo_squared": float(grads_NLTD.double().square().sum()), "dot": 0.0}
    for (place, position), row in images.items():
        metric_grads_NTD = scored[place].metric_grads_NTD
        if metric_grads_NTD is not None:
            # The metric loss reads level 0 alone; at the other levels its gradient is zero.
            metric_TD = metric_grads_NTD[position].double() / num_micro_batches
            out["metric_squared"] += float(metric_TD.square().sum())
            out["dot"] += float((metric_TD * grads_NLTD[row, 0].double()).sum())
    return out


def _reduce(trainable: list[tuple[str, nn.Parameter]], context: RunContext) -> None:
    """One sum over ranks of every gradient, missing ones as zeros."""
    grads = []
    for name, parameter in trainable:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        # Every rank holds the full gradient of the metric loss's own parameters: their sum over ranks becomes the mean.
        grads.append(grad / context.world_size if name.startswith("metric_loss.") else grad)
    for (_, parameter), grad in zip(trainable, context.all_reduce_sum(grads), strict=True):
        parameter.grad = grad


def _metrics(
    metric_losses: list[float], sums: Mapping[str, float], geometry: Mapping[str, float], config: RunConfig
) -> dict[str, float | str]:
    weights = config.loss.weights
    metrics: dict[str, float | str] = {
        "loss/metric": sum(metric_losses) / len(metric_losses),
        "grpo/micro_batches": len(metric_losses),
        "gradient/metric": geometry["token_squared"] ** 0.5,
    }
    total = weights.metric * sum(metric_losses) / len(metric_losses)
    if sums:
        metrics["loss/grpo"] = sums["grpo"] / max(1.0, sums["chosen_tokens"])
        metrics["loss/alignment"] = geometry["alignment"] / max(1.0, sums["attributes"])
        total += weights.grpo * metrics["loss/grpo"] + weights.alignment * metrics["loss/alignment"]
        metrics["reward/mean"] = sums["reward"] / max(1.0, sums["answers"])
        metrics["grpo/zero_advantage_share"] = sums["silent"] / max(1.0, sums["pairs"])
        metrics["grpo/contributing_pairs"] = sums["chosen"]
        metrics["grpo/malformed_share"] = sums["malformed"] / max(1.0, sums["answers"])
        metrics["grpo/tokens_per_answer"] = sums["tokens"] / max(1.0, sums["answers"])
        metrics["gradient/grpo"] = geometry["grpo_squared"] ** 0.5
        # Over the images of the chosen pairs: elsewhere one of the two is zero.
        product = (geometry["metric_squared"] * geometry["grpo_squared"]) ** 0.5
        if product > 0:
            metrics["gradient/cosine"] = geometry["dot"] / product
    metrics["loss/total"] = total
    return metrics
