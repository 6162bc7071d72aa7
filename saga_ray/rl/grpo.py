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


def grpo_loss_sum(log_probs_SR: Tensor, advantages_S: Tensor, mask_SR: Tensor) -> Tensor:
    """Sum over tokens of -A_s log pi_sr: strictly on policy, so the ratio is 1 and nothing is clipped.

    Its gradient is that of the token-level loss of SAGA (arXiv 2606.15134, section 3.2) times the number of tokens,
    by which the trainer divides once.

    Args:
        log_probs_SR: (completions, tokens).
        advantages_S: (completions,).
        mask_SR: bool, False for padding.
    """
    return -(torch.where(mask_SR, log_probs_SR, 0.0) * advantages_S[:, None].to(log_probs_SR.dtype)).sum()
