"""From judged completions to log-probabilities, token gradients and attention; pairs that agree are not differentiated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.gradients import Policy, Scored, naive_score, score_shared
from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import grpo_loss_sum
from saga_ray.types import ScoreOptions


@dataclass(frozen=True)
class Judged:
    """P pairs between sampling and differentiation."""

    layout: Layout
    prefix: Prefix
    tokens_P2LTD: Tensor
    """What the prefix was run from, with graph."""
    completions: Completions
    advantages_PG: Tensor
    rows: list[tuple[list[int], list[int]]]
    """Per answer and image, the rows whose attention counts."""
    replay_support: bool
    """True for sampled answers: their nuclei are replayed, and their log-probabilities are known."""


@dataclass(frozen=True)
class Differentiated:
    """Sums over tokens, per pair."""

    log_probs_PG: Tensor
    token_grads_P2LTD: Tensor
    attention_sum_P2T: Tensor
    attention_count_P2: Tensor


@dataclass(frozen=True)
class Differentiator:
    """A frozen MLLM, the policy that is differentiated, and how."""

    mllm: FrozenMLLM
    policy: Policy
    path: Literal["shared", "naive"]
    capture_layer: int
    """0-based layer whose attention is read."""

    def __call__(self, judged: Judged, options: ScoreOptions) -> Differentiated:
        """Run the pairs whose answers disagree with a graph; given answers of the others only for their log-probability."""
        num_pairs, num_answers = judged.advantages_PG.shape
        contributes_P = (judged.advantages_PG != 0).any(dim=1)
        active, silent = contributes_P.nonzero()[:, 0].tolist(), (~contributes_P).nonzero()[:, 0].tolist()
        log_probs_PG = judged.completions.log_probs_S.view(num_pairs, num_answers).clone()
        grads = torch.zeros_like(judged.tokens_P2LTD, requires_grad=False)
        attention: list[list[Tensor | None]] = []
        if silent and not judged.replay_support:
            quiet = self._score(judged, silent, ScoreOptions(gradient=False, attention=False))
            log_probs_PG[silent] = quiet.log_probs_S.view(-1, num_answers)
        if active and (options.gradient or options.attention or not judged.replay_support):
            scored = self._score(judged, active, options)
            attention = scored.attention
            if scored.token_grads_P2LTD is not None:
                grads = scored.token_grads_P2LTD
            if not judged.replay_support:
                log_probs_PG[active] = scored.log_probs_S.view(-1, num_answers)
        return Differentiated(log_probs_PG, grads, *self._summed(judged, active, attention))

    def _score(self, judged: Judged, pairs: list[int], options: ScoreOptions) -> Scored:
        common = (judged.completions, judged.advantages_PG.flatten(), self.policy, grpo_loss_sum)
        shared_grad = options.gradient and self.path == "shared"
        scored = score_shared(
            self.mllm,
            judged.layout,
            judged.prefix,
            judged.tokens_P2LTD if shared_grad else None,
            *common,
            pairs=pairs,
            replay_support=judged.replay_support,
            capture_layer=self.capture_layer if options.attention else None,
            rows=judged.rows,
        )
        if not options.gradient or shared_grad:
            return scored
        twin = naive_score(
            self.mllm, judged.layout, judged.tokens_P2LTD, *common, pairs=pairs, replay_support=judged.replay_support
        )
        return replace(twin, attention=scored.attention)

    def _summed(self, judged: Judged, active: list[int], attention: list[list[Tensor | None]]) -> tuple[Tensor, Tensor]:
        """Attention summed over a pair's answers, and the number of tokens in it."""
        num_pairs, num_answers = judged.advantages_PG.shape
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
