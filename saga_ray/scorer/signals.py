"""What a pair's answers are worth: which tokens are scored, and with what weight. Every signal has this one form.

loss of a pair = - sum over its answers and their tokens of w log pi

sampled reward   w = the answer's advantage, on every token (GRPO, as in the paper; `rl.grpo` lists the normalisations)
expected reward  w = (p - mean p) / sd on what stands before the verdict, p (G - 1) / G / sd on the RIGHT verdict in the place
                 of the one that was written, 0 behind it; p its probability (of several tokens: their product),
                 sd = sqrt(mean p (1 - mean p)). Sampled rewards have this expectation given the answers' beginnings, and
                 this spread.
lesson           w = 1 on the descriptions of given answers: the values, and what stands before and between them
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import Normalisation, answer_weights, expected_weights, group_advantages, tokens_from


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
    """Where S answers say their verdict, and the tokens that would be right there."""

    place_S: Tensor
    """int64 number of the verdict's first token; -1 for answers without a verdict, or where none can stand in its place."""
    right_SW: Tensor
    """int64 tokens of the right verdict, padded with -1; mostly one."""

    @property
    def num_tokens_S(self) -> Tensor:
        """Of the right verdict; 0 where there is none."""
        return (self.right_SW >= 0).sum(dim=1)

    def corrected(self, completions: Completions, num_pairs: int) -> Signal:
        """The answers with the right verdict from the place of the written one on, without weights.

        What stands behind it has no weight, so it does not matter if a longer verdict lies over some of it.
        """
        plain = Signal.unweighted(completions, num_pairs)
        lacking = int((self.place_S + self.num_tokens_S).max()) - plain.ids_SR.shape[1] if len(self.place_S) else 0
        ids_SR = pad(plain.ids_SR, (0, max(0, lacking)), value=-1)
        for number in range(self.right_SW.shape[1]):
            rows = (self.right_SW[:, number] >= 0).nonzero()[:, 0]
            ids_SR[rows, self.place_S[rows] + number] = self.right_SW[rows, number]
        return replace(plain, ids_SR=ids_SR, weights_SR=torch.zeros_like(ids_SR, dtype=torch.float64))


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
    is_verdict_SR = tokens_from(verdicts.place_S, verdicts.num_tokens_S, log_probs_SR.shape[1])
    log_probs_S = torch.where(is_verdict_SR, log_probs_SR, 0.0).sum(dim=1).double()
    rewards_PG = torch.where(verdicts.place_S >= 0, log_probs_S.exp(), 0.0).view(corrected.rewards_PG.shape)
    mask_SR = pad(drawn_SR, (0, log_probs_SR.shape[1] - drawn_SR.shape[1]), value=False)
    weights_SR, advantages_PG = expected_weights(
        rewards_PG,
        verdicts.place_S,
        mask_SR,
        num_verdict_S=verdicts.num_tokens_S,
        min_std=min_std,
        normalisation=normalisation,
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
