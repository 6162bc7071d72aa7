"""Attention of many rows over a shared prefix and over their own keys: two calls, merged by their log-sum-exps.

The prefix is neither copied for every answer nor repeated for every head, and no mask is stored; the backward pass of a part
is the kernel's own, given the merged output and log-sum-exp (its weights are then those of the whole).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def can_be_split(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel that tells its log-sum-exps: on CPUs always, on GPUs from Ampere (8.0) on, in 16 bits."""
    if device.type != "cuda":
        return device.type == "cpu"
    return dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(device) >= (8, 0)


def two_part_attention(
    query_SHRd: Tensor, prefix: tuple[Tensor, Tensor], key_SKRd: Tensor, value_SKRd: Tensor, scaling: float
) -> Tensor:
    """Rows see all of their pair's prefix, and their own keys causally.

    Args:
        prefix: key and value of (P, K, C, d); S is a multiple of P, row s continues prefix s // (S / P).

    Returns:
        (S, H, R, d), equal to attention over both together.
    """
    return _TwoPart.apply(query_SHRd, *prefix, key_SKRd, value_SKRd, scaling)


class _TwoPart(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key_before: Tensor, value_before: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        num_pairs, num_rows = len(key_before), query.shape[2]
        stacked = stack(query, num_pairs)
        before, before_lse, before_rest = _forward(stacked, key_before, value_before, scaling, causal=False)
        own, own_lse, own_rest = _forward(query, key, value, scaling, causal=True)
        before_lse = unstack(before_lse[..., None], len(query), num_rows)[..., 0]
        before = unstack(before, len(query), num_rows)
        out, lse = merged(before, before_lse, own, own_lse)
        ctx.save_for_backward(query, key_before, value_before, key, value, out, lse)
        ctx.rest = (before_rest, own_rest, scaling)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key_before, value_before, key, value, out, lse = ctx.saved_tensors
        before_rest, own_rest, scaling = ctx.rest
        num_pairs, (num_answers, _, num_rows, _) = len(key_before), query.shape
        grad_out = grad_out.contiguous()
        stacked = [stack(x, num_pairs) for x in (grad_out, query, out)]
        stacked_lse = stack(lse[..., None], num_pairs)[..., 0]
        of_before = _backward(
            stacked[0],
            stacked[1],
            key_before,
            value_before,
            stacked[2],
            stacked_lse,
            before_rest,
            scaling,
            causal=False,
        )
        own = _backward(grad_out, query, key, value, out, lse, own_rest, scaling, causal=True)
        grad_query = own[0] + unstack(of_before[0], num_answers, num_rows)
        return grad_query, of_before[1], of_before[2], own[1], own[2], None


def part_forward(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of every row over all keys, and its log-sum-exps (batch, heads, rows); no graph."""
    out, lse, _ = _forward(query, key, value, scaling, causal=False)
    return out, lse


def merged(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each, and its log-sum-exps."""
    lse = torch.logaddexp(first_lse, second_lse)
    out = first * (first_lse - lse).exp()[..., None] + second * (second_lse - lse).exp()[..., None]
    return out.to(first.dtype), lse


def stack(x_SHRd: Tensor, num_pairs: int) -> Tensor:
    """(P, H, answers x R, d): all rows that see one prefix."""
    S, H, R, d = x_SHRd.shape
    return x_SHRd.reshape(num_pairs, S // num_pairs, H, R, d).transpose(1, 2).reshape(num_pairs, H, -1, d)


def unstack(x_PHnd: Tensor, num_answers: int, num_rows: int) -> Tensor:
    """Inverse of `stack`."""
    P, H, _, d = x_PHnd.shape
    return x_PHnd.reshape(P, H, num_answers // P, num_rows, d).transpose(1, 2).reshape(num_answers, H, num_rows, d)


def _forward(q: Tensor, k: Tensor, v: Tensor, scaling: float, *, causal: bool) -> tuple[Tensor, Tensor, tuple]:
    """Output, log-sum-exp (batch, heads, rows), and what the kernel wants back."""
    if q.device.type == "cuda":
        out, lse, *rest = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scaling)
        return out, lse, tuple(rest[:6])
    # This kernel knows no shared keys.
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scaling)
    return out, lse, ()


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rest: tuple,
    scaling: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, the last two summed over the heads that share them."""
    if q.device.type == "cuda":
        cum_q, cum_k, max_q, max_k, seed, offset = rest
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse.contiguous(), cum_q, cum_k, max_q, max_k, 0.0, causal, seed, offset, scale=scaling
        )
    num_heads = q.shape[1]
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, _repeated(k, num_heads), _repeated(v, num_heads), out, lse, 0.0, causal, scale=scaling
    )
    return dq, _summed(dk, k.shape[1]), _summed(dv, k.shape[1])


def _repeated(x_BKCd: Tensor, num_heads: int) -> Tensor:
    times = num_heads // x_BKCd.shape[1]
    return x_BKCd if times == 1 else x_BKCd.repeat_interleave(times, dim=1)


def _summed(x_BHCd: Tensor, num_key_heads: int) -> Tensor:
    return x_BHCd.unflatten(1, (num_key_heads, -1)).sum(dim=2)
