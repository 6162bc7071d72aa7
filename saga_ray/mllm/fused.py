"""Qwen3-VL's decoder layers with joined projections and fused element-wise work: the same weights, fewer and larger kernels.

Only passes with a memory take this way; the library's own forward, and with it the naive twin, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from saga_ray.mllm.attention import NewRows
from saga_ray.mllm.compiling import compiled_if
from saga_ray.mllm.frozen import FrozenMLLM


def fuse(mllm: FrozenMLLM, *, compiled: bool) -> bool:
    """Switch every decoder layer to its fused form; False, and nothing done, for layers of another kind.

    Args:
        compiled: Let torch.compile fuse what lies between the products; takes a minute at first use.
    """
    layers = list(mllm.decoder.layers)
    if not all(type(layer) in (Qwen3VLTextDecoderLayer, FusedLayer) for layer in layers):
        return False
    work = Elementwise(compiled)
    for layer in layers:
        if type(layer) is Qwen3VLTextDecoderLayer:
            _join(layer)
        layer.elementwise = work
        layer.__class__ = FusedLayer
    return True


def unfuse(mllm: FrozenMLLM) -> None:
    """Back to the library's layers; the joined weights stay joined, which their owners do not notice."""
    for layer in mllm.decoder.layers:
        if type(layer) is FusedLayer:
            layer.__class__ = Qwen3VLTextDecoderLayer


class Elementwise:
    """What lies between a layer's matrix products, compiled or not."""

    def __init__(self, compiled: bool) -> None:
        self.norm: Callable[..., Tensor] = compiled_if(compiled, _norm)
        self.add_norm: Callable[..., tuple[Tensor, Tensor]] = compiled_if(compiled, _add_norm)
        self.heads: Callable[..., tuple[Tensor, Tensor, Tensor]] = compiled_if(compiled, _heads)
        self.gate: Callable[..., Tensor] = compiled_if(compiled, _gate)


class FusedLayer(Qwen3VLTextDecoderLayer):
    """A decoder layer of the library's, seen anew; made by `fuse` alone."""

    elementwise: Elementwise
    joined_qkv: tuple[Tensor, Tensor | None]
    joined_gate_up: Tensor

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], memory: Any = None, **kwargs: Any
    ) -> Tensor:
        """As the library's; `memory` as in `mllm.attention`."""
        if memory is None:
            return super().forward(hidden_states, position_embeddings, **kwargs)
        attention, work = self.self_attn, self.elementwise
        first, second = self.input_layernorm, self.post_attention_layernorm
        S, R, _ = hidden_states.shape
        normed = work.norm(hidden_states, first.weight, first.variance_epsilon)
        qkv = linear(normed, *self.joined_qkv)
        query, key, value = work.heads(
            qkv,
            attention.q_norm.weight,
            attention.k_norm.weight,
            *position_embeddings,
            attention.q_norm.variance_epsilon,
            attention.num_key_value_groups,
        )
        out_SHRd = memory.attend(attention.layer_idx, NewRows(query, key, value, attention.scaling))
        out = linear(out_SHRd.transpose(1, 2).reshape(S, R, -1), attention.o_proj.weight, attention.o_proj.bias)
        hidden_states, normed = work.add_norm(hidden_states, out, second.weight, second.variance_epsilon)
        return hidden_states + linear(work.gate(linear(normed, self.joined_gate_up)), self.mlp.down_proj.weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`. On a CPU, few rows are multiplied from the right: the kernel's threads share the weight's rows, not the few."""
    num_rows = x.numel() // x.shape[-1]
    if x.device.type != "cpu" or num_rows > _FEW:
        return F.linear(x, weight, bias)
    # Copied: what comes next (attention's kernel above all) reads rows.
    out = (weight @ x.reshape(num_rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return out if bias is None else out + bias


_FEW = 64
"""Rows up to which that wins (two threads, widths 512 and 2048: 1.4 to 1.7 times as fast at 16, 1.1 to 1.4 at 64; one thread: equal)."""


def _join(layer: Any) -> None:
    """One matrix for query, key and value, one for gate and up; the library's parameters become views into them."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    bias = None if qkv[0].bias is None else torch.cat([part.bias.data for part in qkv])
    layer.joined_qkv = (_joined(qkv), bias)
    layer.joined_gate_up = _joined((mlp.gate_proj, mlp.up_proj))


@torch.no_grad()
def _joined(parts: tuple[Any, ...]) -> Tensor:
    whole = torch.cat([part.weight.data for part in parts])
    start = 0
    for part in parts:
        end = start + len(part.weight)
        part.weight.data = whole[start:end]
        start = end
    return whole


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm as the library has it: float32 inside, rounded before the weight."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def _add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + more
    return total, _norm(total, weight, eps)


def _heads(
    qkv: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, num_shared: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query (S, H, R, d), key and value (S, K, R, d): split, normalised per head, turned."""
    head_dim = len(query_weight)
    num_key_heads = qkv.shape[-1] // head_dim // (num_shared + 2)
    heads = qkv.unflatten(-1, (-1, head_dim)).transpose(1, 2)
    query, key, value = heads.split([num_key_heads * num_shared, num_key_heads, num_key_heads], dim=1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _turned(_norm(query, query_weight, eps), cos, sin), _turned(_norm(key, key_weight, eps), cos, sin), value


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _gate(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
