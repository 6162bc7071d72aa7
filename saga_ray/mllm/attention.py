"""Attention of the frozen decoder over a shared prefix, and the capture of where answers look.

The decoder's layers are the library's own; only the attention function is ours. It is given a *memory* that holds the
keys and values of what stands before, so that the prefix of a pair is run once and its answers attend to it. Called
without a memory it is the library's scaled-dot-product attention, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from saga_ray.mllm.two_part import two_part_attention

NAME = "saga_ray"


@dataclass(frozen=True)
class NewRows:
    """What a layer asks of R new rows of S sequences."""

    query_SHRd: Tensor
    key_SKRd: Tensor
    value_SKRd: Tensor
    scaling: float
    window: int | None = None
    """A row sees this many rows, itself included; None sees all. The layer's own."""


class Memory(Protocol):
    """Keys and values of what a row may attend to."""

    def attend(self, layer: int, new: NewRows) -> Tensor:
        """Attention output (S, H, R, d) of new rows over the memory and themselves."""
        ...


def install(model: nn.Module) -> None:
    """Let the decoder of `model` use our attention function; its vision tower keeps the library's."""

    def attention(module, query, key, value, attention_mask, *, memory: Memory | None = None, scaling=None, **kwargs):  # type: ignore[no-untyped-def]
        if memory is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        new = NewRows(query, key, value, scaling, kwargs.get("sliding_window"))
        return memory.attend(module.layer_idx, new).transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    # Without this the library passes no mask at all to a function that it does not know.
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation({"text_config": NAME, "vision_config": "sdpa"})


def causal_mask(
    num_before: int,
    num_new: int,
    device: torch.device,
    window: int | None = None,
    blocks: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """bool (new, before + new): a new row sees all that stands before, itself and new rows up to it.

    Args:
        window: It sees no further back than this many rows, itself included.
        blocks: (start, stop) of new rows that see each other in both directions.
    """
    mask = torch.ones(num_new, num_before + num_new, dtype=torch.bool, device=device).tril(num_before)
    for start, stop in blocks:
        mask[start:stop, num_before + start : num_before + stop] = True
    return mask if window is None else mask.triu(num_before - window + 1)


def grouped_attention(
    query_SHRd: Tensor, key_SKCd: Tensor, value_SKCd: Tensor, mask_RC: Tensor | None, scaling: float
) -> Tensor:
    """Scaled dot-product attention in which H / K query heads share each key head."""
    num_shared = query_SHRd.shape[1] // key_SKCd.shape[1]
    if num_shared > 1 and query_SHRd.shape[2] == 1 and mask_RC is None:
        # One new row and no mask: the heads that share keys can stand in the row axis, nothing is repeated.
        packed = query_SHRd.reshape(query_SHRd.shape[0], key_SKCd.shape[1], num_shared, -1)
        return scaled_dot_product_attention(packed, key_SKCd, value_SKCd, scale=scaling).reshape(query_SHRd.shape)
    if num_shared > 1:
        # With a mask, `enable_gqa` falls back to the kernel that stores every weight.
        key_SKCd = key_SKCd.repeat_interleave(num_shared, dim=1)
        value_SKCd = value_SKCd.repeat_interleave(num_shared, dim=1)
    return scaled_dot_product_attention(query_SHRd, key_SKCd, value_SKCd, attn_mask=mask_RC, scale=scaling)


@dataclass
class PrefixMemory:
    """Run the rows of a prefix behind constant keys and values, and keep the keys and values they make.

    `before` holds (key, value) of (1, K, C, d) per layer, C may be 0; `made` is filled with (S, K, R, d), with graph;
    `blocks` are (start, stop) of new rows that see each other in both directions. `split` takes the constant part and the
    rows' own in two calls where no mask is needed, see `mllm.two_part`.
    """

    before: list[tuple[Tensor, Tensor]]
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    blocks: Sequence[tuple[int, int]] = ()
    split: bool = False

    def attend(self, layer: int, new: NewRows) -> Tensor:
        assert layer == len(self.made), "layers run in order"
        key_SKCd, value_SKCd = new.key_SKRd, new.value_SKRd
        self.made.append((key_SKCd, value_SKCd))
        num_before = 0
        if self.split and self.before and new.window is None and not self.blocks:
            return two_part_attention(new.query_SHRd, self.before[layer], key_SKCd, value_SKCd, new.scaling)
        if self.before:
            key_before, value_before = (x.expand(len(key_SKCd), -1, -1, -1) for x in self.before[layer])
            num_before = key_before.shape[2]
            key_SKCd = torch.cat((key_before, key_SKCd), dim=2)
            value_SKCd = torch.cat((value_before, value_SKCd), dim=2)
        mask = causal_mask(num_before, new.query_SHRd.shape[2], key_SKCd.device, new.window, self.blocks)
        return grouped_attention(new.query_SHRd, key_SKCd, value_SKCd, mask, new.scaling)


class AnswerMemory:
    """Keys and values of S answers that grow behind their prefixes, no graph; how they grow is for the classes below it.

    Args:
        prefix: (key, value) of (P, K, C, d) per layer.
        group_size: Answers per pair; row p * group_size + g continues prefix p.
        max_new: Rows that an answer may have behind its prefix.
    """

    def __init__(self, prefix: list[tuple[Tensor, Tensor]], group_size: int, max_new: int) -> None:
        self.buffers = [tuple(_with_room(x_PKCd, group_size, max_new) for x_PKCd in layer) for layer in prefix]

    def keep(self, rows: Tensor) -> None:
        """Drop every answer but `rows`."""
        self.buffers = [tuple(buffer[rows.to(buffer.device)] for buffer in layer) for layer in self.buffers]


def _with_room(x_PKCd: Tensor, group_size: int, max_new: int) -> Tensor:
    """Each prefix G times, with room behind it. Zeros, since what is masked must still be finite."""
    P, K, C, d = x_PKCd.shape
    buffer = x_PKCd.new_zeros(P, group_size, K, C + max_new, d)
    buffer[:, :, :, :C] = x_PKCd.detach()[:, None]
    return buffer.flatten(0, 1)


class DecodeMemory(AnswerMemory):
    """Answers that are written token by token, all of one length."""

    def __init__(self, prefix: list[tuple[Tensor, Tensor]], group_size: int, max_new: int) -> None:
        super().__init__(prefix, group_size, max_new)
        self.length = prefix[0][0].shape[2]

    def attend(self, layer: int, new: NewRows) -> Tensor:
        end = self.length + 1
        start = 0 if new.window is None else max(0, end - new.window)
        key, value = self.buffers[layer]
        key[:, :, self.length : end] = new.key_SKRd
        value[:, :, self.length : end] = new.value_SKRd
        return grouped_attention(new.query_SHRd, key[:, :, start:end], value[:, :, start:end], None, new.scaling)

    def advance(self) -> None:
        """One token was written in every layer."""
        self.length += 1


@dataclass
class ResponseMemory:
    """Whole answers over their pairs' prefixes, with graph; pairs x answers rows in pair order.

    `prefix` holds (key, value) leaves of (P, K, C, d) per layer, on which the gradients accumulate. `split` takes prefix and
    answers in two calls, see `mllm.two_part`.
    """

    prefix: list[tuple[Tensor, Tensor]]
    capture: Capture | None = None
    split: bool = False

    def attend(self, layer: int, new: NewRows) -> Tensor:
        key_PKCd, value_PKCd = self.prefix[layer]
        num_answers = len(new.key_SKRd) // len(key_PKCd)

        def behind(before: Tensor, own: Tensor) -> Tensor:
            # Expanded, not indexed: its backward is a plain sum, in a fixed order on every device.
            shared = before[:, None].expand(-1, num_answers, -1, -1, -1).flatten(0, 1)
            return torch.cat((shared, own), dim=2)

        num_before = key_PKCd.shape[2]
        if self.capture is not None and layer == self.capture.layer:
            with torch.no_grad():
                self.capture.take(new, behind(key_PKCd, new.key_SKRd))
        if self.split and new.window is None:
            return two_part_attention(new.query_SHRd, self.prefix[layer], new.key_SKRd, new.value_SKRd, new.scaling)
        key_SKCd, value_SKCd = behind(key_PKCd, new.key_SKRd), behind(value_PKCd, new.value_SKRd)
        mask = causal_mask(num_before, new.query_SHRd.shape[2], key_SKCd.device, new.window)
        return grouped_attention(new.query_SHRd, key_SKCd, value_SKCd, mask, new.scaling)


@dataclass
class Capture:
    """Where chosen rows of answers look at one layer: head mean, over one image's tokens, renormalised, summed.

    SAGA (arXiv 2606.15134, section 3.4), up to the division by the count.

    Args:
        layer: 0-based layer.
        rows: Per answer and image, the rows (of the answer's own) that count.
        columns: Per image, (start, stop) of its tokens in the prefix.
    """

    layer: int
    rows: list[tuple[list[int], list[int]]]
    columns: tuple[tuple[int, int], tuple[int, int]]
    sums_S2T: list[list[Tensor | None]] = field(default_factory=list)

    def take(self, new: NewRows, key_SKCd: Tensor) -> None:
        """Read the rows' attention from their queries and all keys up to their own; float32 at least."""
        query_SHRd, window = new.query_SHRd, new.window
        wide = torch.promote_types(query_SHRd.dtype, torch.float32)
        num_heads, num_key_heads, num_keys = query_SHRd.shape[1], key_SKCd.shape[1], key_SKCd.shape[2]
        num_before = num_keys - query_SHRd.shape[2]
        for answer, rows_of_images in enumerate(self.rows):
            rows = [row for rows in rows_of_images for row in rows]
            if not rows:
                self.sums_S2T.append([None, None])
                continue
            index_n = torch.tensor(rows, device=query_SHRd.device)
            query_KSd = query_SHRd[answer][:, index_n].to(wide).reshape(num_key_heads, -1, query_SHRd.shape[3])
            scores_KSC = query_KSd @ key_SKCd[answer].to(wide).transpose(1, 2) * new.scaling
            scores_HnC = scores_KSC.view(num_heads, len(rows), num_keys)
            columns_C, own_n1 = torch.arange(num_keys, device=index_n.device), (num_before + index_n)[:, None]
            unseen_nC = columns_C > own_n1
            if window is not None:
                unseen_nC |= columns_C <= own_n1 - window
            weights_nC = scores_HnC.masked_fill(unseen_nC, -torch.inf).softmax(dim=-1).mean(dim=0)
            split = len(rows_of_images[0])
            sums: list[Tensor | None] = []
            for part_nC, (start, stop) in zip((weights_nC[:split], weights_nC[split:]), self.columns, strict=True):
                part_nT = part_nC[:, start:stop]
                part_nT = part_nT / part_nT.sum(dim=1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
                sums.append(part_nT.sum(dim=0) if len(part_nT) else None)
            self.sums_S2T.append(sums)
