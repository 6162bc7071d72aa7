"""Lift a model's own float32 up-casts, so that float64 means float64 throughout: for tests of exactness."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl


def _rms_norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def _text_rotary(self: nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        freqs = position_ids.expand(3, -1, -1)[..., None].to(x.dtype) * self.inv_freq.to(x.device, x.dtype)
        cos, sin = freqs.cos() * self.attention_scaling, freqs.sin() * self.attention_scaling
        return self.recomposition_frequencies(cos), self.recomposition_frequencies(sin)


def _vision_rotary(self: nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        freqs = position_ids[..., None].double() * self.inv_freq.to(position_ids.device, torch.float64)
        cos, sin = freqs.cos() * self.attention_scaling, freqs.sin() * self.attention_scaling
        return self.recomposition_frequencies(cos), self.recomposition_frequencies(sin)


def _rotate_vision(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The library's function, with float32 as the least precision in place of the only one."""
    wide = torch.promote_types(q.dtype, torch.float32)
    cos, sin = cos.unsqueeze(-2).to(wide), sin.unsqueeze(-2).to(wide)
    q_wide, k_wide = q.to(wide), k.to(wide)
    q_out = q_wide * cos + qwen3_vl.rotate_half(q_wide) * sin
    k_out = k_wide * cos + qwen3_vl.rotate_half(k_wide) * sin
    return q_out.to(q.dtype), k_out.to(k.dtype)


def _gemma3_norm(self: nn.Module, x: Tensor) -> Tensor:
    return self._norm(x) * (1.0 + self.weight)


def _gemma3_rotary(self: nn.Module, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
    inv_freq, scaling = getattr(self, f"{layer_type}_inv_freq"), getattr(self, f"{layer_type}_attention_scaling")
    return _plain_angles(x, position_ids, inv_freq, scaling)


def _plain_rotary(self: nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    return _plain_angles(x, position_ids, self.inv_freq, self.attention_scaling)


@torch.no_grad()
def _plain_angles(x: Tensor, position_ids: Tensor, inv_freq: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    freqs = position_ids[..., None].to(x.dtype) * inv_freq.to(x.device, x.dtype)
    freqs = torch.cat((freqs, freqs), dim=-1)
    return freqs.cos() * scaling, freqs.sin() * scaling


def _router(self: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = nn.functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
    top, indices = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
    return logits, top / top.sum(dim=-1, keepdim=True), indices


def _lifted(part: nn.Module) -> Callable[..., Any] | None:
    """The library writes these classes once per family, all alike: they are told apart by what they have."""
    name = type(part).__name__
    if name == "Gemma3RMSNorm":
        return _gemma3_norm
    if name == "Gemma3RotaryEmbedding":
        return _gemma3_rotary
    if name.endswith("RMSNorm") and hasattr(part, "variance_epsilon"):
        return _rms_norm
    if name.endswith("TopKRouter"):
        return _router
    if name.endswith("RotaryEmbedding"):
        if not hasattr(part, "recomposition_frequencies"):
            return _plain_rotary
        return _vision_rotary if "Vision" in name else _text_rotary
    return None


def exact_float64(module: nn.Module) -> nn.Module:
    """Make `module` (a model of a supported family or a part of one, in float64) compute in float64 throughout, in place.

    The library computes RMS norms, rotary angles, routers of experts and the tower's rotation in float32 whatever the
    model's dtype; two ways of computing the same thing would then agree only to 1e-7. (Its scaled-dot-product attention
    keeps float64.)

    Returns:
        The same module.
    """
    libraries = {qwen3_vl}
    for part in module.modules():
        if lifted := _lifted(part):
            part.forward = MethodType(lifted, part)
        if type(part).__name__.endswith("Experts"):
            part.config._experts_implementation = "eager"  # the grouped product knows no float64
        libraries.add(sys.modules[type(part).__module__])
    for library in libraries:
        if hasattr(library, "apply_rotary_pos_emb_vision"):
            # The tower's attention looks this up among its module's globals; other dtypes are computed as before.
            library.apply_rotary_pos_emb_vision = _rotate_vision
    return module
