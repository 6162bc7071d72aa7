"""Lift a model's own float32 up-casts, so that float64 means float64 throughout: for tests of exactness."""

from __future__ import annotations

from types import MethodType

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


_LIFTED = {
    qwen3_vl.Qwen3VLTextRMSNorm: _rms_norm,
    qwen3_vl.Qwen3VLTextRotaryEmbedding: _text_rotary,
    qwen3_vl.Qwen3VLVisionRotaryEmbedding: _vision_rotary,
}


def exact_float64(module: nn.Module) -> nn.Module:
    """Make `module` (a Qwen3-VL model or a part of one, in float64) compute in float64 throughout, in place.

    The library computes RMS norms, rotary angles and the tower's rotation in float32 whatever the model's dtype; two
    ways of computing the same thing would then agree only to 1e-7. (Its scaled-dot-product attention keeps float64.)

    Returns:
        The same module.
    """
    for part in module.modules():
        if lifted := _LIFTED.get(type(part)):
            part.forward = MethodType(lifted, part)
    # The tower's attention looks this up among its module's globals; other dtypes are computed as before.
    qwen3_vl.apply_rotary_pos_emb_vision = _rotate_vision
    return module
