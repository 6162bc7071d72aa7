"""log pi of chosen tokens through the frozen head, and its gradient in closed form: no graph keeps the logits.

d (-w log pi(y)) / d z = w (softmax(z) - onehot(y)), with z the logits on the sampled support; a few rows at a time, since those
of one group of a real MLLM take gigabytes in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saga_ray.mllm.frozen import FrozenMLLM
from saga_ray.mllm.sampling import nucleus_size, restrict

MAX_LOGITS = {"cpu": 2**22, "cuda": 2**28}
"""Entries of the logits that are held at once: what a CPU's caches bear, and a gigabyte of a GPU's."""


def head_log_probs(
    mllm: FrozenMLLM,
    hidden_ND: Tensor,
    ids_N: Tensor,
    support_N: Tensor | None,
    weights_N: Tensor | None,
    temperature: float,
    top_p: float,
    sets: tuple[Tensor, Tensor] | None = None,
    reference_N: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log pi (N,) float64 of tokens after hidden states without a graph.

    Args:
        support_N: Sizes of the supports that they were drawn from; None: the nucleus is found anew.
        sets: Of a template's tokens, the number of the set that each is drawn from (N,), and all sets (A, V).
        weights_N: w of the loss -sum w log pi; None: no gradient is wanted.
        reference_N: log pi of another policy; w is then larger by how much that exceeds this policy's own.

    Returns:
        log pi, and d loss / d hidden (N, D) in the hidden states' dtype.
    """
    log_probs: list[Tensor] = []
    grads: list[Tensor] = []
    step = max(1, MAX_LOGITS.get(hidden_ND.device.type, 2**24) // len(mllm.bias_V))
    for start in range(0, len(ids_N), step):
        part = slice(start, start + step)
        hidden_nD, ids_n = hidden_ND[part].detach().requires_grad_(weights_N is not None), ids_N[part]
        # The graph of the head alone: it keeps the frozen matrix, and nothing of the size of the logits.
        with torch.set_grad_enabled(weights_N is not None):
            logits_nV = mllm.logits(hidden_nD, temperature)
        with torch.no_grad():
            allowed_nV = logits_nV.detach()
            if sets is not None:
                allowed_nV = allowed_nV.masked_fill(~sets[1][sets[0][part]], -torch.inf)
            size_n = nucleus_size(allowed_nV, top_p) if support_N is None else support_N[part]
            allowed_nV = restrict(allowed_nV, size_n, ids_n)
            total_n1 = allowed_nV.logsumexp(dim=1, keepdim=True)
            log_probs.append((allowed_nV.gather(1, ids_n[:, None]) - total_n1)[:, 0].double())
            if weights_N is not None:
                wanted_nV = (allowed_nV - total_n1).exp_()
                wanted_nV[torch.arange(len(ids_n), device=ids_n.device), ids_n] -= 1.0
                weights_n = weights_N[part]
                if reference_N is not None:
                    weights_n = weights_n + (reference_N[part] - log_probs[-1])
                wanted_nV *= weights_n.to(wanted_nV.dtype)[:, None]
                grads.append(torch.autograd.grad(logits_nV, hidden_nD, wanted_nV)[0])
    return torch.cat(log_probs), torch.cat(grads) if weights_N is not None else None
