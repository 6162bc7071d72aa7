"""What a pair's answers are worth: which tokens are scored, and with what weight. Every signal has this one form.

loss of a pair = - sum over its answers and their tokens of w log pi

sampled reward   w = the answer's advantage, on every token (GRPO, as in the paper; `rl.grpo` lists the normalisations)
expected reward  w = (p - mean p) / sd on what stands before the verdict, p (G - 1) / G / sd on the RIGHT verdict in the place
                 of the one that was written, 0 behind it; p its probability, sd = sqrt(mean p (1 - mean p)). Sampled
                 rewards have this expectation given the answers' beginnings, and this spread.
lesson           w = 1 on the descriptions of given answers: the values, and what stands before and between them
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import Normalisation, answer_weights, expected_weights, group_advantages


@dataclass(frozen=True)
class Signal:
    """Weights on tokens of P pairs' answers, S = P x G of them."""

    ids_SR: Tensor
    """Tokens that are scored, padded with -1; those that were written, but for the verdict of an expected reward."""
    weights_SR: Tensor
    """float64."""
    rewards_PG: Tensor
    advantages_PG: Tensor
    contributes_P: Tensor
    """bool: some token of the pair has a weight."""
    truncated: bool = False
    """True if log pi is taken over the nucleus that the tokens were drawn from, False for the full support."""

    @classmethod
    def unweighted(cls, completions: Completions, num_pairs: int) -> Signal:
        """All tokens as they were written, all of weight 0; for log-probabilities."""
        ids_SR = completions.token_ids_SR
        zeros_PG = torch.zeros(num_pairs, len(ids_SR) // max(1, num_pairs), dtype=torch.float64, device=ids_SR.device)
        everyone = torch.ones(num_pairs, dtype=torch.bool, device=ids_SR.device)
        return cls(
            ids_SR, torch.zeros(ids_SR.shape, dtype=torch.float64, device=ids_SR.device), zeros_PG, zeros_PG, everyone
        )


def sampled_reward(
    completions: Completions, rewards_PG: Tensor, min_std: float, normalisation: Normalisation = "dapo"
) -> Signal:
    """GRPO and its kin: every drawn token of an answer weighs its advantage."""
    advantages_PG = group_advantages(rewards_PG, min_std=min_std, normalisation=normalisation)
    ids_SR = completions.token_ids_SR
    weights_SR = answer_weights(advantages_PG.flatten().double(), completions.drawn_SR, normalisation)
    contributes_P = (advantages_PG != 0).any(dim=1)
    return Signal(ids_SR, weights_SR, rewards_PG, advantages_PG, contributes_P, truncated=True)


@dataclass(frozen=True)
class Verdicts:
    """Where S answers say their verdict, and the token that would be right there."""

    place_S: Tensor
    """int64 number of the verdict's token; -1 for answers without a verdict, or with one of several tokens."""
    right_S: Tensor
    """int64 token of the right verdict; -1 as above."""

    def corrected(self, completions: Completions, num_pairs: int) -> Signal:
        """The answers with the right verdict in place of the written one, without weights."""
        plain = Signal.unweighted(completions, num_pairs)
        rows = (self.place_S >= 0).nonzero()[:, 0]
        ids_SR = plain.ids_SR.clone()
        ids_SR[rows, self.place_S[rows]] = self.right_S[rows]
        return replace(plain, ids_SR=ids_SR)


def expected_reward(
    corrected: Signal,
    log_probs_SR: Tensor,
    verdicts: Verdicts,
    drawn_SR: Tensor,
    min_std: float,
    normalisation: Normalisation = "dapo",
) -> Signal:
    """The verdict's reward in expectation, its gradient exactly; answers without a verdict have reward 0.

    Args:
        corrected: `verdicts.corrected` of the answers.
        log_probs_SR: log pi of its tokens.
        drawn_SR: bool, False for padding and for what a template fed.
    """
    rows = (verdicts.place_S >= 0).nonzero()[:, 0]
    probability_S = torch.zeros(len(log_probs_SR), dtype=torch.float64, device=log_probs_SR.device)
    probability_S[rows] = log_probs_SR[rows, verdicts.place_S[rows]].exp()
    rewards_PG = probability_S.view(corrected.rewards_PG.shape)
    weights_SR, advantages_PG = expected_weights(
        rewards_PG, verdicts.place_S, drawn_SR, min_std=min_std, normalisation=normalisation
    )
    contributes_P = (weights_SR != 0).any(dim=1).view(rewards_PG.shape).any(dim=1)
    return replace(
        corrected,
        weights_SR=weights_SR,
        rewards_PG=rewards_PG,
        advantages_PG=advantages_PG,
        contributes_P=contributes_P,
    )


def lesson(completions: Completions, num_pairs: int, values: list[list[int]]) -> Signal:
    """Cross-entropy of given answers up to their last value.

    Keys and punctuation cost next to nothing while answers keep their form, and hold it where the values move the tokens.

    Args:
        values: of every answer, the numbers of the tokens that are values, in order.
    """
    plain = Signal.unweighted(completions, num_pairs)
    weights_SR = plain.weights_SR.clone()
    for row, tokens in enumerate(values):
        weights_SR[row, : tokens[-1] + 1 if tokens else 0] = 1.0
    taught_P = (weights_SR != 0).any(dim=1).view(num_pairs, -1).any(dim=1)
    return replace(plain, weights_SR=weights_SR, contributes_P=taught_P)
