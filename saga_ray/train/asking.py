"""Asking the scorer about a micro-batch; one that works elsewhere is at it while the trainer goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.train.consensus import Consensus
from saga_ray.train.replay import Kept, Lesson, Scored
from saga_ray.types import (
    ImagePair,
    MicroBatch,
    ScoreOptions,
    Scorer,
    ScorerElsewhere,
    ScoreRequest,
    ScoreResult,
    VisualTokens,
)

Answer = Callable[[], ScoreResult]
"""Waits for an answer."""


@dataclass(frozen=True)
class Asked:
    """The questions about one micro-batch, under way."""

    batch: MicroBatch
    tokens: VisualTokens
    """Detached."""
    answer: Answer | None
    """About the plan's pairs; None if no loss needs the MLLM's own answers."""
    lesson: tuple[tuple[ImagePair, ...], Answer] | None

    def scored(self, metric_grads_NTD: Tensor | None, kept: Kept | None, consensus: Consensus | None) -> Scored:
        """Wait for all answers; the consensus hears them, so micro-batches must be collected in the order of the plan."""
        result = None if self.answer is None else self.answer()
        lesson = None if self.lesson is None else Lesson(self.lesson[0], self.lesson[1]())
        if consensus is not None and result is not None:
            consensus.hear(self.batch, result)
        return Scored(self.batch, self.tokens, metric_grads_NTD, result, lesson, kept)


def ask(
    batch: MicroBatch,
    tokens: VisualTokens,
    reference: VisualTokens | None,
    scorer: Scorer,
    config: RunConfig,
    consensus: Consensus | None,
) -> Asked:
    """Ask of a micro-batch what the losses need: of the plan's pairs, and of the lesson.

    Args:
        tokens: detached.
    """
    answer = lesson = None
    if config.samples_answers:
        options = score_options(config)
        request = ScoreRequest(config.seed, batch.index, batch.pairs, tokens, options, reference=reference)
        answer = _begin(scorer, request)
    if consensus is not None:
        request_or_none = consensus.request(batch, tokens)
        if request_or_none is not None:
            lesson = request_or_none.pairs, _begin(scorer, request_or_none)
    return Asked(batch, tokens, answer, lesson)


def score_options(config: RunConfig) -> ScoreOptions:
    """Ask only for what a loss will use."""
    weights = config.loss.weights
    return ScoreOptions(gradient=weights.grpo > 0, attention=weights.alignment > 0)


def micro_batches_ahead(scorer: Scorer | None, config: RunConfig) -> int:
    """Micro-batches that are encoded while earlier ones are still being scored.

    None in this process. None with refill either: whether another is taken depends on the answers about the one before.
    """
    elsewhere = isinstance(scorer, ScorerElsewhere) and not config.grpo.refill
    return config.grpo.max_micro_batches - 1 if elsewhere else 0


def _begin(scorer: Scorer, request: ScoreRequest) -> Answer:
    """Send it off to a scorer elsewhere; one in this process works when it is waited for."""
    if isinstance(scorer, ScorerElsewhere):
        return scorer.begin(request)
    return lambda: scorer.score(request)
