"""The second pass of a step: the scorer's token gradients enter the tower, with the chosen images once more or its kept graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.encoder.encoder import Encoder
from saga_ray.train.alignment import alignment_loss_sum
from saga_ray.types import ImagePair, MicroBatch, ScoreResult, VisualTokens

REPLAY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of replayed to scored tokens, relative to the largest token; bfloat16 autocast gets 0.05."""
SIGNALS = ("grpo", "reference_kl", "consensus")
"""Losses whose gradient at the tokens comes from the scorer."""

ImageKey = tuple[int, int]
"""Micro-batch of the step, position in it."""


@dataclass(frozen=True)
class Lesson:
    """Given answers about a micro-batch, scored."""

    pairs: tuple[ImagePair, ...]
    result: ScoreResult


@dataclass(frozen=True)
class Kept:
    """A micro-batch's tokens with the tower's graph, and the gradient that waits there."""

    tokens_NLTD: Tensor
    grads_NLTD: Tensor | None


@dataclass(frozen=True)
class Scored:
    """This rank's part of one micro-batch, as the scorer saw it."""

    batch: MicroBatch
    tokens: VisualTokens
    """Detached."""
    metric_grads_NTD: Tensor | None
    """Gradient of the weighted metric loss at level 0 of the tokens."""
    result: ScoreResult | None
    """Of the plan's pairs; None if no loss needs the MLLM's own answers."""
    lesson: Lesson | None = None
    kept: Kept | None = None

    @property
    def num_contributing(self) -> int:
        """Pairs whose answers carry a gradient."""
        return 0 if self.result is None else int(self.result.contributes_P.sum())

    @property
    def results(self) -> list[ScoreResult]:
        """All that the scorer returned."""
        lesson = None if self.lesson is None else self.lesson.result
        return [result for result in (self.result, lesson) if result is not None]


@dataclass(frozen=True)
class Chosen:
    """A contributing pair of this rank: which micro-batch of the step, which of its pairs."""

    place: int
    pair: int


@dataclass(frozen=True)
class Carried:
    """A gradient at the two images of a pair, already divided and weighted."""

    images: tuple[ImageKey, ImageKey]
    grads_2LTD: Tensor


def replay(
    encoder: Encoder,
    scored: list[Scored],
    chosen: list[Chosen],
    config: RunConfig,
    sums: Mapping[str, float],
    num_micro_batches: int,
) -> dict[str, float]:
    """Add this rank's alignment gradient and those of all signals to `.grad`; returns its sums for losses and geometry.

    Args:
        sums: over all ranks, as from `sums.step_sums`; every signal is divided by the count of its own unit.
    """
    weights = config.loss.weights
    out = {"alignment": 0.0}
    roots: list[Tensor] = []
    root_grads: list[Tensor | None] = []
    if chosen and weights.alignment > 0 and sums["attributes"] > 0:
        loss = _alignment(encoder, scored, chosen)
        out["alignment"] = float(loss.detach())
        roots.append(loss * (weights.alignment / sums["attributes"]))
        root_grads.append(None)
    grads: dict[ImageKey, Tensor] = {}
    for signal in SIGNALS:
        if getattr(weights, signal) > 0:
            of_signal = _added_up(_carried(signal, scored, chosen, getattr(weights, signal), sums))
            out |= _geometry(signal, scored, of_signal, num_micro_batches)
            for image, grad_LTD in of_signal.items():
                grads[image] = grads[image] + grad_LTD if image in grads else grad_LTD
    for place, of in enumerate(scored):
        if of.kept is not None:
            roots.append(of.kept.tokens_NLTD)
            root_grads.append(_with_signals(of.kept, place, grads))
    again = [(place, position) for place, position in grads if scored[place].kept is None]
    for images in _portions(again, config.data.batch_size):
        if config.encoder.trains_tower:
            roots.append(_replayed_tokens(encoder, scored, images))
            root_grads.append(torch.stack([grads[image] for image in images]).to(roots[-1].dtype))
        _backward(roots, root_grads)
        roots, root_grads = [], []
    _backward(roots, root_grads)
    return out


def _with_signals(kept: Kept, place: int, grads: Mapping[ImageKey, Tensor]) -> Tensor:
    """The gradient that waited, and the signals' at the images of micro-batch `place`."""
    total_NLTD = torch.zeros_like(kept.tokens_NLTD) if kept.grads_NLTD is None else kept.grads_NLTD.clone()
    for (of_place, position), grad_LTD in grads.items():
        if of_place == place:
            total_NLTD[position] += grad_LTD.to(total_NLTD)
    return total_NLTD


def _portions(images: list[ImageKey], size: int) -> list[list[ImageKey]]:
    """No more images at once than the metric loss has: what fits there fits here, however long a step searched."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def _backward(roots: list[Tensor], root_grads: list[Tensor | None]) -> None:
    wanted = [(root, grad) for root, grad in zip(roots, root_grads, strict=True) if root.requires_grad]
    if wanted:
        torch.autograd.backward([root for root, _ in wanted], [grad for _, grad in wanted])


def _carried(
    signal: str, scored: list[Scored], chosen: list[Chosen], weight: float, sums: Mapping[str, float]
) -> Iterator[Carried]:
    """A signal's gradients, pair by pair."""
    if signal == "grpo":
        for each in chosen:
            of = scored[each.place]
            assert of.result is not None
            factor = weight / sums["chosen_units"]
            yield _of_pair(each.place, of.batch.pairs[each.pair], of.result.token_grads_P2LTD[each.pair], factor)
        return
    for place, of in enumerate(scored):
        if signal == "consensus" and of.lesson is not None:
            pairs, grads_P2LTD = of.lesson.pairs, of.lesson.result.token_grads_P2LTD
            factor = weight / max(1.0, sums["taught"])
        elif signal == "reference_kl" and of.result is not None and of.result.reference_grads_P2LTD is not None:
            pairs, grads_P2LTD = of.batch.pairs, of.result.reference_grads_P2LTD
            factor = weight / sums["tokens"]
        else:
            continue
        for pair, grads_2LTD in zip(pairs, grads_P2LTD, strict=True):
            yield _of_pair(place, pair, grads_2LTD, factor)


def _of_pair(place: int, pair: ImagePair, grads_2LTD: Tensor, factor: float) -> Carried:
    wide = torch.promote_types(grads_2LTD.dtype, torch.float32)
    return Carried(((place, pair.first), (place, pair.second)), grads_2LTD.to(wide) * factor)


def _added_up(carried: Iterator[Carried]) -> dict[ImageKey, Tensor]:
    """Gradient at each image, over the pairs that show it."""
    grads: dict[ImageKey, Tensor] = {}
    for each in carried:
        for image, grad_LTD in zip(each.images, each.grads_2LTD, strict=True):
            grads[image] = grads[image] + grad_LTD if image in grads else grad_LTD
    return grads


def _alignment(encoder: Encoder, scored: list[Scored], chosen: list[Chosen]) -> Tensor:
    """Sum of the alignment loss over this rank's chosen pairs; tokens are detached, so that only the pooler learns."""
    tokens_P2TD, sums_P2T, counts_P2 = [], [], []
    for each in chosen:
        of = scored[each.place]
        assert of.result is not None
        pair = of.batch.pairs[each.pair]
        tokens_P2TD.append(of.tokens.tokens_NLTD[[pair.first, pair.second], 0])
        sums_P2T.append(of.result.attention_sum_P2T[each.pair])
        counts_P2.append(of.result.attention_count_P2[each.pair])
    log_weights_P2T = encoder.pooler.log_weights(torch.stack(tokens_P2TD).flatten(0, 1)).view(len(chosen), 2, -1)
    device = log_weights_P2T.device
    return alignment_loss_sum(torch.stack(sums_P2T).to(device), torch.stack(counts_P2).to(device), log_weights_P2T)[0]


def _replayed_tokens(encoder: Encoder, scored: list[Scored], images: list[ImageKey]) -> Tensor:
    """Tokens of some images with their graph, checked against those that were scored."""
    device = scored[0].tokens.tokens_NLTD.device
    pixels = [torch.from_numpy(scored[place].batch.images_NHWC[position]) for place, position in images]
    expected_NLTD = torch.stack([scored[place].tokens.tokens_NLTD[position] for place, position in images])
    tokens_NLTD = encoder.encode_tokens(torch.stack(pixels).to(device)).tokens_NLTD
    difference = (tokens_NLTD.detach() - expected_NLTD).abs().max() / expected_NLTD.abs().max()
    tolerance = REPLAY_TOLERANCE.get(tokens_NLTD.dtype, 0.05)
    if encoder.device.type == "cuda" and tokens_NLTD.dtype == torch.float32:
        tolerance = 0.05  # merger outputs may be float32 after bfloat16 products
    assert difference <= tolerance, f"replayed tokens differ from the scored ones by {float(difference):.2e}"
    return tokens_NLTD


def _geometry(
    signal: str, scored: list[Scored], grads: Mapping[ImageKey, Tensor], num_micro_batches: int
) -> dict[str, float]:
    """Squared lengths of a signal's and the metric gradient at the tokens of the signal's images, and their dot product."""
    out = {f"{signal}_squared": 0.0, f"{signal}_metric_squared": 0.0, f"{signal}_dot": 0.0}
    for (place, position), grad_LTD in grads.items():
        out[f"{signal}_squared"] += float(grad_LTD.double().square().sum())
        metric_grads_NTD = scored[place].metric_grads_NTD
        if metric_grads_NTD is not None:
            # The metric loss reads level 0 alone; at the other levels its gradient is zero.
            metric_TD = metric_grads_NTD[position].double() / num_micro_batches
            out[f"{signal}_metric_squared"] += float(metric_TD.square().sum())
            out[f"{signal}_dot"] += float((metric_TD * grad_LTD[0].double()).sum())
    return out
