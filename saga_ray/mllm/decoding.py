"""Attention while answers are written on a CPU: each pair's prefix is read once for all of its answers, not once for each."""

from __future__ import annotations

import torch
from torch import Tensor

from saga_ray.mllm.attention import DecodeMemory, NewRows
from saga_ray.mllm.frozen import FrozenMLLM, Prefix
from saga_ray.mllm.two_part import merged, part_forward, stack, unstack


class SharedDecodeMemory:
    """As `DecodeMemory`, which it equals but for last bits: prefix and own keys in two calls, merged by their log-sum-exps.

    All queries that see one prefix (answers x heads that share keys) stand in the row axis of one call. Of layers that see
    the whole prefix only.
    """

    def __init__(self, prefix: list[tuple[Tensor, Tensor]], group_size: int, max_new: int) -> None:
        self.prefix = [(key.detach().contiguous(), value.detach().contiguous()) for key, value in prefix]
        num_pairs = len(prefix[0][0])
        self.own = [
            tuple(x.new_empty(num_pairs * group_size, x.shape[1], max_new, x.shape[3]) for x in layer)
            for layer in prefix
        ]
        self.length = 0
        self._pair_S = torch.arange(num_pairs).repeat_interleave(group_size)
        self._place(self._pair_S)

    def _place(self, pair_S: Tensor) -> None:
        """Where each row stands in a grid of (pairs, answers): ragged groups leave holes, which are computed in vain."""
        counts_P = torch.bincount(pair_S)
        self._width = int(counts_P.max())
        rank_S = torch.arange(len(pair_S)) - (counts_P.cumsum(0) - counts_P)[pair_S]
        self._place_S = pair_S * self._width + rank_S
        self._is_full = len(pair_S) == len(counts_P) * self._width

    def attend(self, layer: int, new: NewRows) -> Tensor:
        S, H, _, d = new.query_SHRd.shape
        K = new.key_SKRd.shape[1]
        query_SKnd = new.query_SHRd.reshape(S, K, H // K, d)
        key, value = self.own[layer]
        key[:, :, self.length] = new.key_SKRd[:, :, 0]
        value[:, :, self.length] = new.value_SKRd[:, :, 0]
        seen = self.length + 1
        own, own_lse = part_forward(query_SKnd, key[:, :, :seen], value[:, :, :seen], new.scaling)
        before, before_lse = self._over_prefix(layer, query_SKnd, new.scaling)
        return merged(before, before_lse, own, own_lse)[0].reshape(S, H, 1, d)

    def _over_prefix(self, layer: int, query_SKnd: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        num_pairs, num_rows = len(self.prefix[layer][0]), query_SKnd.shape[2]
        grid = query_SKnd
        if not self._is_full:
            grid = query_SKnd.new_zeros(num_pairs * self._width, *query_SKnd.shape[1:])
            grid[self._place_S] = query_SKnd
        # Here the heads that share keys are the rows.
        out, lse = part_forward(stack(grid, num_pairs), *self.prefix[layer], scaling)
        out, lse = unstack(out, len(grid), num_rows), unstack(lse[..., None], len(grid), num_rows)[..., 0]
        return (out, lse) if self._is_full else (out[self._place_S], lse[self._place_S])

    def advance(self) -> None:
        """One token was written in every layer."""
        self.length += 1

    def keep(self, rows: Tensor) -> None:
        """Drop every answer but `rows`, and every prefix that has none left."""
        self.own = [tuple(x[rows] for x in layer) for layer in self.own]
        left, self._pair_S = self._pair_S[rows].unique(return_inverse=True)
        if len(left) < len(self.prefix[0][0]):
            self.prefix = [(key[left], value[left]) for key, value in self.prefix]
        self._place(self._pair_S)


def decode_memory(mllm: FrozenMLLM, prefix: Prefix, group_size: int, max_new: int) -> DecodeMemory | SharedDecodeMemory:
    """What answers are written behind."""
    if mllm.split and mllm.device.type == "cpu" and set(mllm.layer_kinds) == {"full_attention"}:
        return SharedDecodeMemory(prefix.keys_values, group_size, max_new)
    return DecodeMemory(prefix.keys_values, group_size, max_new)
