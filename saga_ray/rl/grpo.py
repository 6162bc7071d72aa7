"""Group-relative policy optimisation: advantages within a pair's answers, and the policy loss as a sum."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards_PG: Tensor, *, min_std: float = 1e-6) -> Tensor:
    """Standardise rewards within each pair's group of completions.

    A_pg = (r_pg - mean_g r_pg) / std_g r_pg, with the population std (GRPO, arXiv 2402.03300). Ours: a group whose
    std is below `min_std` gets exactly 0.

    Args:
        rewards_PG: (pairs, completions), dimensionless.

    Returns:
        (pairs, completions); every row sums to 0 up to rounding.
    """
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    # Two passes: E[x^2] - E[x]^2 leaves a residue that would pass for a deviation.
    std_P1 = centred_PG.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(std_P1 >= min_std, centred_PG / std_P1.clamp_min(min_std), 0.0)


def answer_weights(advantages_S: Tensor, mask_SR: Tensor) -> Tensor:
    """Weight of every token of an answer: the answer's advantage; 0 for padding.

    With `policy_loss_sum` this is the token-level loss of SAGA (arXiv 2606.15134, section 3.2) times the number of
    tokens, by which the trainer divides once.

    Args:
        advantages_S: (completions,).
        mask_SR: bool, False for padding.
    """
    return torch.where(mask_SR, advantages_S[:, None], 0.0)


def policy_loss_sum(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of -w log pi: strictly on policy, so the ratio is 1 and nothing is clipped.

    Every signal through the frozen MLLM is such a sum; they differ in which tokens are scored, and in their weights.
    """
    return -(weights.to(log_probs.dtype) * torch.where(weights != 0, log_probs, 0.0)).sum()


def expected_weights(
    rewards_PG: Tensor, verdict_S: Tensor, mask_SR: Tensor, *, min_std: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Weights for a reward whose verdict is averaged out: its sampled noise is gone, its expectation is the same.

    With p_g the probability of the right verdict after what answer g wrote, J = E[p] and
    grad J = E[(p_g - mean p) grad log pi(before the verdict) + p_g grad log pi(right verdict)]: the second term is exact.
    All is divided by sqrt(mean p (1 - mean p)), the standard deviation that sampled rewards would have.

    Args:
        rewards_PG: p, (pairs, completions), in [0, 1].
        verdict_S: number of the verdict's token; -1 for an answer without one, whose p is 0.
        mask_SR: bool, False for padding.

    Returns:
        Weights (S, R) of the tokens, the right verdict standing at `verdict_S`; and (p - mean p) / sd, (P, G).
    """
    mean_P1 = rewards_PG.mean(dim=1, keepdim=True)
    std_P1 = (mean_P1 * (1 - mean_P1)).clamp_min(0).sqrt()
    speaks_P1 = std_P1 >= min_std
    advantages_PG = torch.where(speaks_P1, (rewards_PG - mean_P1) / std_P1.clamp_min(min_std), 0.0)
    exact_PG = torch.where(speaks_P1, rewards_PG / std_P1.clamp_min(min_std), 0.0)
    place_SR = torch.arange(mask_SR.shape[1], device=mask_SR.device).expand(mask_SR.shape)
    verdict_S1 = verdict_S[:, None]
    before_SR = mask_SR & ((place_SR < verdict_S1) | (verdict_S1 < 0))
    weights_SR = torch.where(before_SR, advantages_PG.flatten()[:, None], 0.0)
    return torch.where(place_SR == verdict_S1, exact_PG.flatten()[:, None], weights_SR), advantages_PG
