"""From judged completions to log-probabilities, token gradients and attention; pairs without a signal are not differentiated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.gradients import Policy, Scored, naive_score, score_shared
from saga_ray.mllm.sampling import Completions
from saga_ray.rl.reference import PER_TOKEN, ReferenceKL, reference_weights
from saga_ray.scorer.signals import Signal
from saga_ray.types import ScoreOptions


@dataclass(frozen=True)
class Judged:
    """P pairs between sampling and differentiation."""

    layout: Layout
    prefix: Prefix
    tokens_P2LTD: Tensor
    """What the prefix was run from, with graph."""
    completions: Completions
    """As written; a signal may score other tokens in their place."""
    signal: Signal
    rows: list[tuple[list[int], list[int]]]
    """Per answer and image, the rows whose attention counts."""
    sampled: bool
    """True for sampled answers: their nuclei are replayed, and their log-probabilities are known."""


@dataclass(frozen=True)
class Differentiated:
    """Sums over tokens, per pair."""

    log_probs_PG: Tensor
    loss_P: Tensor
    token_grads_P2LTD: Tensor
    attention_sum_P2T: Tensor
    attention_count_P2: Tensor


@dataclass(frozen=True)
class Reference:
    """The KL from the reference policy, per pair."""

    reference_kl_P: Tensor
    reference_grads_P2LTD: Tensor


@dataclass(frozen=True)
class Differentiator:
    """A frozen MLLM, the policy that is differentiated, and how."""

    mllm: FrozenMLLM
    policy: Policy
    path: Literal["shared", "naive"]
    capture_layer: int
    """0-based layer whose attention is read."""
    reference_kl: ReferenceKL = "k2"

    def __call__(self, judged: Judged, options: ScoreOptions, *, keep_graph: bool = False) -> Differentiated:
        """Run the contributing pairs with a graph; given answers of the others only for their log-probability."""
        signal = judged.signal
        num_pairs = len(signal.contributes_P)
        num_answers = len(judged.completions.token_ids_SR) // num_pairs
        active = signal.contributes_P.nonzero()[:, 0].tolist()
        silent = (~signal.contributes_P).nonzero()[:, 0].tolist()
        log_probs_PG = judged.completions.log_probs_S.view(num_pairs, num_answers).clone()
        loss_P = torch.zeros(num_pairs, dtype=torch.float64, device=self.mllm.device)
        grads = torch.zeros_like(judged.tokens_P2LTD, requires_grad=False)
        attention: list[list[Tensor | None]] = []
        if silent and not judged.sampled:
            quiet = self._score(judged, silent, ScoreOptions(gradient=False, attention=False))
            log_probs_PG[silent] = quiet.log_probs_SR.sum(dim=1).view(-1, num_answers)
        if active and (options.gradient or options.attention or not judged.sampled):
            scored = self._score(judged, active, options, keep_graph)
            attention = scored.attention
            if scored.token_grads_P2LTD is not None:
                grads = scored.token_grads_P2LTD
            rows = signal.weights_SR.view(num_pairs, num_answers, -1)[active].flatten(0, 1)
            loss_P[active] = -(rows * scored.log_probs_SR).sum(dim=1).view(-1, num_answers).sum(dim=1)
            if not judged.sampled:
                log_probs_PG[active] = scored.log_probs_SR.sum(dim=1).view(-1, num_answers)
        return Differentiated(log_probs_PG, loss_P, grads, *self._summed(judged, num_answers, active, attention))

    def log_probs(self, judged: Judged, signal: Signal) -> Tensor:
        """log pi (S, R) of the tokens that a signal scores, without any gradient."""
        pairs = list(range(len(signal.contributes_P)))
        quiet = ScoreOptions(gradient=False, attention=False)
        return self._score(replace(judged, signal=signal), pairs, quiet).log_probs_SR

    def reference(self, judged: Judged, reference: Prefix) -> Reference:
        """The KL between the policy and the one with `reference` as its prefix, on the answers as they were written.

        Its gradient is an unbiased estimate in each form (`rl.reference`) if the answers were sampled at top-p 1; both
        policies are taken over the full support.
        """
        whole = replace(self, path="shared")
        num_pairs = len(judged.signal.contributes_P)
        plain = Signal.unweighted(judged.completions, num_pairs)
        theirs = whole.log_probs(replace(judged, prefix=reference), plain)
        pairs, options = list(range(num_pairs)), ScoreOptions(gradient=True, attention=False)
        if self.path == "shared" and self.reference_kl in PER_TOKEN:
            # The weights are known as soon as a token's own log pi is: one pass gives both.
            scored = self._score(replace(judged, signal=plain), pairs, options, reference_SR=theirs)
            _, values_SR = self._reference_weights(judged, scored.log_probs_SR - theirs)
        else:
            ours = whole.log_probs(judged, plain)
            weights_SR, values_SR = self._reference_weights(judged, ours - theirs)
            signal = replace(plain, weights_SR=weights_SR)
            scored = self._score(replace(judged, signal=signal), pairs, options)
        assert scored.token_grads_P2LTD is not None
        return Reference(values_SR.sum(dim=1).view(num_pairs, -1).sum(dim=1), scored.token_grads_P2LTD)

    def _reference_weights(self, judged: Judged, apart_SR: Tensor) -> tuple[Tensor, Tensor]:
        num_pairs = len(judged.signal.contributes_P)
        return reference_weights(apart_SR, judged.completions.drawn_SR, num_pairs, self.reference_kl)

    def _score(
        self,
        judged: Judged,
        pairs: list[int],
        options: ScoreOptions,
        keep_graph: bool = False,
        reference_SR: Tensor | None = None,
    ) -> Scored:
        signal = judged.signal
        scored_tokens = replace(judged.completions, token_ids_SR=signal.ids_SR)
        # Words that are given, or verdicts that were not drawn, are no part of a sampled nucleus.
        policy = self.policy if signal.truncated else Policy(self.policy.temperature, 1.0)
        replay_support = judged.sampled and signal.truncated
        common = (scored_tokens, signal.weights_SR, policy)
        shared_grad = options.gradient and self.path == "shared"
        scored = score_shared(
            self.mllm,
            judged.layout,
            judged.prefix,
            judged.tokens_P2LTD if shared_grad else None,
            *common,
            pairs=pairs,
            replay_support=replay_support,
            capture_layer=self.capture_layer if options.attention else None,
            rows=judged.rows,
            keep_graph=keep_graph,
            reference_SR=reference_SR,
        )
        if not options.gradient or shared_grad:
            return scored
        twin = naive_score(
            self.mllm, judged.layout, judged.tokens_P2LTD, *common, pairs=pairs, replay_support=replay_support
        )
        return replace(twin, attention=scored.attention)

    def _summed(
        self, judged: Judged, num_answers: int, active: list[int], attention: list[list[Tensor | None]]
    ) -> tuple[Tensor, Tensor]:
        """Attention summed over a pair's answers, and the number of tokens in it."""
        num_pairs = len(judged.signal.contributes_P)
        sums_P2T = torch.zeros(
            num_pairs, 2, judged.layout.num_visual, dtype=self.mllm.logit_dtype, device=self.mllm.device
        )
        counts_P2 = torch.zeros(num_pairs, 2, dtype=torch.int64, device=self.mllm.device)
        for place, sums in enumerate(attention):
            pair = active[place // num_answers]
            rows = judged.rows[pair * num_answers + place % num_answers]
            for image, sum_T in enumerate(sums):
                if sum_T is not None:
                    sums_P2T[pair, image] += sum_T
                    counts_P2[pair, image] += len(rows[image])
        return sums_P2T, counts_P2
