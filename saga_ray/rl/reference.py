"""The KL from a reference policy, estimated on answers of the policy itself: forms whose gradients are unbiased.

d = log pi - log pi_ref of a token that was drawn from pi. Its mean is the token's KL(pi || pi_ref), but the gradient of d
itself is that of log pi, whose mean is zero: k1 in the loss teaches nothing about the reference. What is unbiased:

    k2            d^2 / 2, gradient d grad log pi; given what stands before the token
    k3            (exp(-d) - 1 + d) times the ratio pi / stopped pi; its gradient is again d grad log pi, only the logged value
                  differs: it is never negative and its mean is the KL
    k1-in-reward  the sum of d over an answer is taken off its reward: (D - mean D of the others) grad log pi of all its tokens;
                  also counts what a token does to the KL of those behind it, and so varies more

Names as in J. Schulman, "Approximating KL divergence" (2020). All need answers that were sampled at top-p 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ReferenceKL = Literal["k2", "k3", "k1-in-reward"]
PER_TOKEN = ("k2", "k3")
"""Forms in which a token's weight is -d, whatever the other tokens are."""


def reference_weights(apart_SR: Tensor, drawn_SR: Tensor, num_pairs: int, form: ReferenceKL) -> tuple[Tensor, Tensor]:
    """Weights whose summed -w log pi has the KL's gradient, and the estimate itself.

    Args:
        apart_SR: d of every token, 0 where none was drawn; S = P x G.
        drawn_SR: bool.

    Returns:
        Weights (S, R), and values (S, R) whose sums are logged.
    """
    if form == "k2":
        return -apart_SR, apart_SR.square() / 2
    if form == "k3":
        return -apart_SR, torch.expm1(-apart_SR) + apart_SR
    whole_PG = apart_SR.sum(dim=1).view(num_pairs, -1)
    others = max(1, whole_PG.shape[1] - 1)
    baseline_PG = (whole_PG.sum(dim=1, keepdim=True) - whole_PG) / others
    return torch.where(drawn_SR, -(whole_PG - baseline_PG).flatten()[:, None], 0.0), apart_SR
