"""One step: search for pairs whose answers disagree, then add up all gradients. The weights change nowhere in here.

Search: up to M micro-batches, each giving its metric gradient and its candidates to the scorer, until K pairs contribute
(over all ranks, in plan order, surplus dropped). A scorer elsewhere is at work while this process computes losses and,
where the number of micro-batches is fixed, encodes the next ones. Replay: the chosen images once more through the tower, now carrying the
scorer's token gradients; a search of one micro-batch keeps the tower's graph instead. Everything is summed over ranks once, at the end, so that ranks may differ in what they do in
between; tokens and pairs are summed and divided by the counts of the whole step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saga_ray.config import RunConfig
from saga_ray.encoder.encoder import Encoder
from saga_ray.train.asking import Asked, ask, micro_batches_ahead
from saga_ray.train.consensus import Consensus
from saga_ray.train.context import RunContext, gather_rows
from saga_ray.train.errors import check_finite
from saga_ray.train.replay import Chosen, Kept, Scored, replay
from saga_ray.train.sums import over_ranks, scorer_seconds, step_metrics, step_sums
from saga_ray.types import MicroBatch, Scorer, VisualTokens


@dataclass(frozen=True)
class Model:
    """What is trained."""

    encoder: Encoder
    metric_loss: nn.Module | None
    reference: Encoder | None = None
    """The initial encoder, frozen, for the losses that compare with it."""

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters with a gradient, in a fixed order; the metric loss's own start with `metric_loss.`."""
        parts = [("encoder", self.encoder), ("metric_loss", self.metric_loss)]
        named = [(f"{part}.{name}", p) for part, net in parts if net is not None for name, p in net.named_parameters()]
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]


@dataclass(frozen=True)
class Encoded:
    """The losses of a micro-batch that need no MLLM."""

    metric_grads_NTD: Tensor | None
    """Gradient of the weighted metric loss at level 0 of the tokens."""
    metric_loss: float
    anchor_loss: float
    kept: Kept | None
    """What the tower has still to be told."""


@dataclass(frozen=True)
class Search:
    """This rank's micro-batches of a step."""

    scored: list[Scored]
    metric_losses: list[float]
    anchor_losses: list[float]
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
    consensus: Consensus | None = None,
) -> StepReport:
    """Leave the gradient of the whole step, over all ranks, in `.grad` of every trainable parameter.

    Args:
        scorer: None if no loss of `config` asks the MLLM.
        batches: this rank's rows of the plan, in order; as many are taken as the step needs.
        step: number of the step, counted from 1; for messages.
        consensus: what is taught of the classes; it hears the answers of this step.

    Raises:
        NonFiniteError: on every rank alike, if a loss is not finite.
    """
    clock = Clock()
    trainable = model.trainable()
    for _, parameter in trainable:
        parameter.grad = None
    found = _search(model, batches, scorer, config, context, step, clock, consensus)
    scored = found.scored
    num_micro_batches = len(found.metric_losses)
    for _, parameter in trainable:
        if parameter.grad is not None:
            parameter.grad /= num_micro_batches
    chosen = _choose(scored, config.grpo.contributing_pairs, context)
    # Sums over this rank's pairs and tokens; every mean below is a ratio of two of them, over all ranks.
    sums = over_ranks(step_sums(scored, chosen, config.grpo.normalisation), context) if scorer is not None else {}
    clock.lap("score")
    geometry = {"token_squared": found.token_squared / num_micro_batches**2}
    if scorer is not None:
        geometry |= replay(model.encoder, scored, chosen, config, sums, num_micro_batches)
    geometry = over_ranks(geometry, context)
    clock.lap("replay")
    _reduce(trainable, context)
    clock.lap("reduce")
    metrics = step_metrics(found.metric_losses, found.anchor_losses, sums, geometry, config)
    for quantity, value in metrics.items():
        if quantity.startswith("loss/"):
            check_finite(quantity, float(value), step)
    metrics |= {f"seconds/{stage}": seconds for stage, seconds in clock.seconds.items()}
    metrics |= scorer_seconds(scored)
    return StepReport(metrics, num_micro_batches, scored, chosen)


def _search(
    model: Model,
    batches: Iterator[MicroBatch],
    scorer: Scorer | None,
    config: RunConfig,
    context: RunContext,
    step: int,
    clock: Clock,
    consensus: Consensus | None,
) -> Search:
    """Take micro-batches until enough pairs contribute; metric gradients add up in `.grad`."""
    scored: list[Scored] = []
    metric_losses: list[float] = []
    anchor_losses: list[float] = []
    num_contributing, token_squared = 0, 0.0
    # Of one micro-batch the graph fits where its metric gradient does; of several it may not.
    keeps_graph = scorer is not None and config.grpo.max_micro_batches == 1
    under_way: deque[tuple[Asked, Encoded]] = deque()
    num_ahead = micro_batches_ahead(scorer, config)
    while len(metric_losses) < config.grpo.max_micro_batches:
        batch = next(batches, None)
        clock.lap("data")
        if batch is None:
            break
        reference = _reference_tokens(model, batch, context) if config.needs_reference else None
        tokens = _tokens(model, batch, config, context, keeps_graph)
        if scorer is not None:
            compared = reference if config.loss.weights.reference_kl > 0 else None
            asked = ask(batch, _detached(tokens), compared, scorer, config, consensus)
        encoded = _encode(model, batch, tokens, reference, config, context, keeps_graph)
        check_finite("loss/metric", encoded.metric_loss, step)
        if encoded.metric_grads_NTD is not None:
            token_squared += float(encoded.metric_grads_NTD.double().square().sum())
        metric_losses.append(encoded.metric_loss)
        anchor_losses.append(encoded.anchor_loss)
        clock.lap("encode")
        if scorer is not None:
            under_way.append((asked, encoded))
            if len(under_way) > num_ahead:
                scored.append(_collected(under_way, consensus))
                num_contributing += sum(context.gather(scored[-1].num_contributing))
            clock.lap("score")
        enough = not config.samples_answers or num_contributing >= config.grpo.contributing_pairs
        if config.grpo.refill and enough:
            break
    while under_way:
        scored.append(_collected(under_way, consensus))
    assert metric_losses, f"no micro-batch is left for step {step}"
    return Search(scored, metric_losses, anchor_losses, token_squared)


def _collected(under_way: deque[tuple[Asked, Encoded]], consensus: Consensus | None) -> Scored:
    asked, encoded = under_way.popleft()
    return asked.scored(encoded.metric_grads_NTD, encoded.kept, consensus)


def _reference_tokens(model: Model, batch: MicroBatch, context: RunContext) -> VisualTokens | None:
    """The micro-batch through the initial encoder."""
    if model.reference is None:
        return None
    with torch.no_grad():
        return model.reference.encode_tokens(torch.from_numpy(batch.images_NHWC).to(context.device))


def _tokens(model: Model, batch: MicroBatch, config: RunConfig, context: RunContext, keep_graph: bool) -> VisualTokens:
    """A micro-batch through the tower, with its graph if any loss will need one."""
    images_NHWC = torch.from_numpy(batch.images_NHWC).to(context.device)
    with torch.set_grad_enabled(_has_loss(model, config) or keep_graph):
        return model.encoder.encode_tokens(images_NHWC)


def _has_loss(model: Model, config: RunConfig) -> bool:
    return model.metric_loss is not None or config.loss.weights.anchor > 0


def _detached(tokens: VisualTokens) -> VisualTokens:
    return VisualTokens(tokens.tokens_NLTD.detach(), tokens.grid_hw)


def _encode(
    model: Model,
    batch: MicroBatch,
    tokens: VisualTokens,
    reference: VisualTokens | None,
    config: RunConfig,
    context: RunContext,
    keep_graph: bool,
) -> Encoded:
    """Add a micro-batch's metric and anchor gradients to `.grad`, or keep the tower's part for the replay.

    The loss is that of the whole batch over all ranks. Every rank computes it alike and differentiates its own rows, so
    the encoder's gradients add up over ranks to the full one, while each rank holds the full gradient of the proxies.
    """
    weights = config.loss.weights
    graph_NLTD = tokens.tokens_NLTD
    leaf_NLTD = graph_NLTD.detach()
    if not _has_loss(model, config):
        return Encoded(None, 0.0, 0.0, Kept(graph_NLTD, None) if graph_NLTD.requires_grad else None)
    leaf_NLTD.requires_grad_(graph_NLTD.requires_grad)
    loss, metric_grads_NTD, anchor = leaf_NLTD.new_zeros(()), None, 0.0
    if model.metric_loss is not None:
        embedding_NE, _ = model.encoder.pool(VisualTokens(leaf_NLTD, tokens.grid_hw))
        labels_N = torch.from_numpy(batch.labels_N).to(context.device)
        loss = model.metric_loss(own_rows_with_graph(context, embedding_NE), gather_rows(context, labels_N))
        if loss.requires_grad:
            (weights.metric * loss).backward()
        metric_grads_NTD = None if leaf_NLTD.grad is None else leaf_NLTD.grad[:, 0].clone()
    if weights.anchor > 0:
        assert reference is not None
        # Every rank has as many images, and the ranks' gradients add up.
        apart = anchor_loss(leaf_NLTD, reference.tokens_NLTD) / context.world_size
        if apart.requires_grad:
            (weights.anchor * apart).backward()
        anchor = sum(context.gather(float(apart.detach())))
    kept = Kept(graph_NLTD, leaf_NLTD.grad) if graph_NLTD.requires_grad else None
    if kept is not None and not keep_graph:
        graph_NLTD.backward(leaf_NLTD.grad)
        kept = None
    return Encoded(metric_grads_NTD, float(loss.detach()), anchor, kept)


def anchor_loss(tokens_NLTD: Tensor, reference_NLTD: Tensor) -> Tensor:
    """Mean over images and levels of |x - x_0|^2 / |x_0|^2, the norms taken over all tokens of a level."""
    apart_NL = (tokens_NLTD - reference_NLTD).square().flatten(2).sum(dim=2)
    return (apart_NL / reference_NLTD.square().flatten(2).sum(dim=2)).mean()


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
        if each.result is not None
        for pair in each.result.contributes_P.nonzero().flatten().tolist()
    ]
    everyone = sorted((place, number) for rank in context.gather(mine) for place, number, _ in rank)
    wanted = {tuple(each) for each in everyone[:num_wanted]}
    return [Chosen(place, pair) for place, number, pair in sorted(mine) if (place, number) in wanted]


def _reduce(trainable: list[tuple[str, nn.Parameter]], context: RunContext) -> None:
    """One sum over ranks of every gradient, missing ones as zeros."""
    grads = []
    for name, parameter in trainable:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        # Every rank holds the full gradient of the metric loss's own parameters: their sum over ranks becomes the mean.
        grads.append(grad / context.world_size if name.startswith("metric_loss.") else grad)
    for (_, parameter), grad in zip(trainable, context.all_reduce_sum(grads), strict=True):
        parameter.grad = grad
