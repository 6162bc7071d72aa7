"""Attention alignment: the language model's attention on attribute tokens teaches the pooler where to look."""

from __future__ import annotations

import torch
from torch import Tensor


def alignment_loss_sum(
    attention_sum_P2T: Tensor, attention_count_P2: Tensor, log_weights_P2T: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over pairs and images of count * KL(teacher || student), and the total count; the loss is their ratio.

    The teacher is the mean attention of an image's attribute tokens, renormalised over the image's tokens; the student
    the pooler's weights; D_KL = sum_t teacher_t (log teacher_t - log student_t) (SAGA, section 3.4). Each image weighs
    as many times as it has attribute tokens, so the ratio is a mean over attribute tokens, however pairs are split.

    Args:
        attention_sum_P2T: attention summed over an image's attribute tokens; each token's sums to 1 over T.
        attention_count_P2: number of attribute tokens; 0 leaves an image out.
        log_weights_P2T: logarithm of the pooler's weights, with graph.

    Returns:
        Two scalars: the sum, with graph, and the count.
    """
    teacher_P2T = attention_sum_P2T.detach().to(log_weights_P2T.dtype)
    teacher_P2T = teacher_P2T / teacher_P2T.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(teacher_P2T.dtype).tiny)
    divergence_P2 = (torch.xlogy(teacher_P2T, teacher_P2T) - teacher_P2T * log_weights_P2T).sum(dim=-1)
    count_P2 = attention_count_P2.to(divergence_P2)
    return (count_P2 * divergence_P2).sum(), count_P2.sum()
