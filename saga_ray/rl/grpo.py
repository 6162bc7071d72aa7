"""Group-relative policy optimisation: advantages within a pair's answers, and the policy loss as a sum.

Every normalisation has one form, so that the trainer divides once: weights on tokens, and a number of units per pair.

    loss of a step = - sum over pairs, answers and tokens of w log pi / sum over pairs of units

    normalisation  w of a token of answer g                      units
    dapo           (r_g - mean) / std                            tokens      DAPO, arXiv 2503.14476; SAGA, arXiv 2606.15134
    grpo           (r_g - mean) / std / tokens of g              answers     GRPO, arXiv 2402.03300
    dr-grpo        r_g - mean                                    answers     Dr. GRPO, arXiv 2503.20783
    rloo           r_g - mean of the others                      answers     RLOO, arXiv 2402.14740

`rloo` is an unbiased estimate of the gradient of the expected reward. `dr-grpo` is (G - 1) / G of it, since its mean holds the
answer itself; its authors' code also divides by a constant length, which is left to `loss.weights.grpo`. The other
two weigh pairs by 1 / std, and `grpo` favours short answers among the right ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["dapo", "grpo", "dr-grpo", "rloo"]


def group_advantages(rewards_PG: Tensor, *, min_std: float = 1e-6, normalisation: Normalisation = "dapo") -> Tensor:
    """Compare rewards within each pair's group of completions.

    A_pg = (r_pg - mean_g r_pg) / std_g r_pg, with the population std, or without it (see above). Ours: a group whose std
    is below `min_std` gets exactly 0.

    Args:
        rewards_PG: (pairs, completions), dimensionless.

    Returns:
        (pairs, completions); every row sums to 0 up to rounding.
    """
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    # Two passes: E[x^2] - E[x]^2 leaves a residue that would pass for a deviation.
    std_P1 = centred_PG.square().mean(dim=1, keepdim=True).sqrt()
    scale = _without_own(rewards_PG.shape[1], normalisation)
    scaled_PG = centred_PG / std_P1.clamp_min(min_std) if _standardises(normalisation) else centred_PG * scale
    return torch.where(std_P1 >= min_std, scaled_PG, 0.0)


def _standardises(normalisation: Normalisation) -> bool:
    return normalisation in ("dapo", "grpo")


def _without_own(group_size: int, normalisation: Normalisation) -> float:
    """r - mean of the others = G / (G - 1) (r - mean)."""
    return group_size / max(1, group_size - 1) if normalisation == "rloo" else 1.0


def answer_weights(advantages_S: Tensor, mask_SR: Tensor, normalisation: Normalisation = "dapo") -> Tensor:
    """Weight of every token of an answer: the answer's advantage, over its tokens for `grpo`; 0 where nothing was drawn.

    Args:
        advantages_S: (completions,).
        mask_SR: bool, False for padding and for what a template fed.
    """
    return _per_token(torch.where(mask_SR, advantages_S[:, None], 0.0), mask_SR, normalisation)


def _per_token(weights_SR: Tensor, mask_SR: Tensor, normalisation: Normalisation) -> Tensor:
    if normalisation != "grpo":
        return weights_SR
    return weights_SR / mask_SR.sum(dim=1, keepdim=True).clamp_min(1)


def loss_units(num_tokens_PG: Tensor, normalisation: Normalisation) -> Tensor:
    """(P,) what the trainer divides a pair's summed loss by, together with those of all other pairs: tokens or answers."""
    if normalisation == "dapo":
        return num_tokens_PG.sum(dim=1)
    return torch.full_like(num_tokens_PG[:, 0], num_tokens_PG.shape[1])


def policy_loss_sum(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of -w log pi: strictly on policy, so the ratio is 1 and nothing is clipped.

    Every signal through the frozen MLLM is such a sum; they differ in which tokens are scored, and in their weights.
    """
    return -(weights.to(log_probs.dtype) * torch.where(weights != 0, log_probs, 0.0)).sum()


def tokens_from(first_S: Tensor, num_S: Tensor, num_tokens: int) -> Tensor:
    """bool (S, R): the tokens from number `first_S` on, `num_S` of them; none where `first_S` is -1."""
    place_SR = torch.arange(num_tokens, device=first_S.device).expand(len(first_S), -1)
    return (first_S[:, None] >= 0) & (place_SR >= first_S[:, None]) & (place_SR < (first_S + num_S)[:, None])


def expected_weights(
    rewards_PG: Tensor,
    verdict_S: Tensor,
    mask_SR: Tensor,
    *,
    num_verdict_S: Tensor | None = None,
    min_std: float = 1e-6,
    normalisation: Normalisation = "dapo",
) -> tuple[Tensor, Tensor]:
    """Weights for a reward whose verdict is averaged out: its sampled noise is gone, its expectation is the same.

    With p_g the probability of the right verdict after what answer g wrote, J = E[p] and
    grad J = E[(p_g - mean of the others' p) grad log pi(before the verdict) + p_g grad log pi(right verdict)]: the second
    term is exact. `rloo` is this. The others take the mean of all p, which makes the first term (G - 1) / G of it, so the
    second is scaled by as much: the whole is (G - 1) / G of grad J, as with sampled rewards. Where the normalisation divides by
    a standard deviation, it is sqrt(mean p (1 - mean p)), that of sampled rewards.

    Args:
        rewards_PG: p, (pairs, completions), in [0, 1].
        verdict_S: number of the right verdict's first token; -1 for an answer without one, whose p is 0.
        mask_SR: bool, False for padding and for what a template fed.
        num_verdict_S: Tokens of the right verdict, whose p is their product; None: one each.

    Returns:
        Weights (S, R) of the tokens, the right verdict standing at `verdict_S`; and the advantages (P, G) of what stands before.
    """
    mean_P1 = rewards_PG.mean(dim=1, keepdim=True)
    std_P1 = (mean_P1 * (1 - mean_P1)).clamp_min(0).sqrt()
    speaks_P1 = std_P1 >= min_std
    by_P1 = std_P1.clamp_min(min_std) if _standardises(normalisation) else torch.ones_like(std_P1)
    group_size = rewards_PG.shape[1]
    scale = _without_own(group_size, normalisation)
    advantages_PG = torch.where(speaks_P1, (rewards_PG - mean_P1) * scale / by_P1, 0.0)
    exact_PG = torch.where(speaks_P1, rewards_PG * scale * (group_size - 1) / group_size / by_P1, 0.0)
    place_SR = torch.arange(mask_SR.shape[1], device=mask_SR.device).expand(mask_SR.shape)
    verdict_S1 = verdict_S[:, None]
    before_SR = mask_SR & ((place_SR < verdict_S1) | (verdict_S1 < 0))
    weights_SR = torch.where(before_SR, advantages_PG.flatten()[:, None], 0.0)
    lengths_S = torch.ones_like(verdict_S) if num_verdict_S is None else num_verdict_S
    is_verdict_SR = tokens_from(verdict_S, lengths_S, mask_SR.shape[1])
    weights_SR = torch.where(is_verdict_SR, exact_PG.flatten()[:, None], weights_SR)
    return _per_token(weights_SR, mask_SR, normalisation), advantages_PG
