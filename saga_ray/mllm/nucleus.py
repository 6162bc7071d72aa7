"""Drawing a token without asking the host anything, so that a GPU never waits and a graph can hold it."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_on_device(
    logits_SV: Tensor, uniform_S: Tensor, top_p: float, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mllm.sampling.draw`, which it equals, for nuclei of fewer than `most` tokens.

    Returns:
        ids (S,), log-probabilities on the support (S,) float64, support sizes (S,), and (S,) bool: True where the nucleus
        did not fit into the `most` likeliest tokens, and the rest is not to be used.
    """
    if top_p >= 1:
        ids_SK, chosen_SK = None, logits_SV.double()
        size_S = torch.full((len(logits_SV),), logits_SV.shape[1], device=logits_SV.device)
        too_wide_S = torch.zeros(len(logits_SV), dtype=torch.bool, device=logits_SV.device)
    else:
        top_SK, ids_SK = logits_SV.topk(min(most, logits_SV.shape[1]), dim=1)
        total_S1 = logits_SV.double().logsumexp(dim=1, keepdim=True)
        probs_SK = (top_SK.double() - total_S1).exp()
        inside_SK = (probs_SK.cumsum(dim=1) - probs_SK) < top_p
        edge_S1 = top_SK.gather(1, inside_SK.sum(dim=1, keepdim=True).clamp_min(1) - 1)
        size_S = (top_SK >= edge_S1).sum(dim=1)  # ties at the edge belong to it
        # A tie may go on behind the last of them; with the whole vocabulary there is no behind.
        too_wide_S = (edge_S1 <= top_SK[:, -1:])[:, 0] if top_SK.shape[1] < logits_SV.shape[1] else size_S < 0
        # In the order of ids, as over the whole vocabulary.
        ids_SK, order_SK = ids_SK.sort(dim=1)
        kept_SK = top_SK.double().masked_fill(top_SK < edge_S1, -torch.inf)
        chosen_SK = kept_SK.gather(1, order_SK)
    probs_SK = chosen_SK.softmax(dim=1)
    cumulated_SK = probs_SK.cumsum(dim=1)
    total_S1 = cumulated_SK[:, -1:].contiguous()
    point_S1 = torch.minimum(uniform_S[:, None] * total_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))
    # Bounded, or one NaN would end the process on a GPU.
    place_S1 = torch.searchsorted(cumulated_SK, point_S1, right=True).clamp_max(probs_SK.shape[1] - 1)
    log_probs_S = probs_SK.gather(1, place_S1)[:, 0].log()
    ids_S1 = place_S1 if ids_SK is None else ids_SK.gather(1, place_S1)
    return ids_S1[:, 0], log_probs_S, size_S, too_wide_S
