"""Sampling for GPUs: pairs in slots of fixed size, a token of every answer per replay of a CUDA graph, slots filled anew.

Equal to `mllm.sampling.sample`, its slow obvious twin, but for the order of the arithmetic. Everything a step needs stands in
tensors at fixed places, so the host only says how many steps to take, and looks at what has ended every few of them. Answers
of one pair share the prefix's keys and values: they are read once per pair, not once per answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saga_ray.mllm.attention import NewRows
from saga_ray.mllm.compiling import compiled_if
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.nucleus import draw_on_device
from saga_ray.mllm.sampling import Completions, draw

STEPS = 16
"""Tokens between two looks at what has ended."""
BUCKET = 128
"""Answers' keys are read up to the next multiple of this."""
MOST = 1024
"""Nuclei up to this size are drawn from without a sort of the whole vocabulary; wider ones send a block of steps the slow way."""


def fits_slots(mllm: FrozenMLLM) -> bool:
    """Whether all layers see the whole prompt and lie on one device, and angles do not depend on how long an answer is."""
    kinds = getattr(mllm.model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    devices = {parameter.device for parameter in mllm.model.parameters()}
    return set(kinds) == {"full_attention"} and len(devices) == 1 and not _stretches(mllm)


def _stretches(mllm: FrozenMLLM) -> bool:
    """Whether the library looks at the highest position at every step and asks or copies from the host, as no CUDA graph may.

    `transformers.modeling_rope_utils.dynamic_rope_update` does so for these two kinds; InternVL 3 has the first.
    """
    kind = getattr(mllm.decoder.rotary_emb, "rope_type", "default")
    kinds = kind.values() if isinstance(kind, dict) else [kind]  # Gemma 3 has one for each kind of layer
    return any("dynamic" in each or each == "longrope" for each in kinds)


class SlotMemory:
    """Keys and values of pairs in slots: each prefix once, each answer's own behind it.

    Args:
        like: A key of the prefix, (P, K, C, d).
        compiled: Let torch.compile fuse the softmax.
    """

    def __init__(
        self, num_layers: int, like: Tensor, num_slots: int, group_size: int, max_new: int, *, compiled: bool = False
    ) -> None:
        _, num_heads, num_before, head_dim = like.shape
        self.group_size, self.reach = group_size, max_new
        self._weigh = compiled_if(compiled, _weights)
        before = (num_slots, num_heads, num_before, head_dim)
        own = (num_slots * group_size, num_heads, max_new, head_dim)
        # Zeros: rows without a pair are computed as well, and 0 times rubbish may be NaN.
        self.before = [(like.new_zeros(before), like.new_zeros(before)) for _ in range(num_layers)]
        self.own = [(like.new_zeros(own), like.new_zeros(own)) for _ in range(num_layers)]
        self.length_S = torch.zeros(num_slots * group_size, dtype=torch.int64, device=like.device)
        """Tokens that each answer has been fed so far."""

    def put(self, slot: int, prefix: Prefix, pair: int) -> None:
        """A new pair begins in a slot."""
        for (key, value), (new_key, new_value) in zip(self.before, prefix.keys_values, strict=True):
            key[slot].copy_(new_key[pair])
            value[slot].copy_(new_value[pair])
        self.length_S[slot * self.group_size : (slot + 1) * self.group_size] = 0

    def attend(self, layer: int, new: NewRows) -> Tensor:
        assert new.window is None, "sliding windows are not for slots"
        S, H, _, d = new.query_SHRd.shape
        K = new.key_SKRd.shape[1]
        own_key, own_value = self.own[layer]
        place_SK1d = self.length_S[:, None, None, None].expand(S, K, 1, d)
        own_key.scatter_(2, place_SK1d, new.key_SKRd)
        own_value.scatter_(2, place_SK1d, new.value_SKRd)
        key, value = (x.flatten(0, 1) for x in self.before[layer])
        own_key, own_value = (x.flatten(0, 1)[:, : self.reach] for x in (own_key, own_value))
        query_Sd = new.query_SHRd.reshape(S * K, H // K, d)
        scores_before = _product(self._of_pairs(query_Sd, K), key.transpose(1, 2))
        scores_own = _product(query_Sd, own_key.transpose(1, 2)).view(S, K, H // K, -1)
        for_before, for_own = self._weigh(
            _of_answers(scores_before, S, K, H // K), scores_own, self.length_S, new.scaling, query_Sd.dtype
        )
        from_before = self._of_pairs(for_before.flatten(0, 1), K) @ value
        from_own = for_own.flatten(0, 1) @ own_value
        return (_of_answers(from_before, S, K, H // K) + from_own.view(S, K, H // K, d)).reshape(S, H, 1, d)

    def _of_pairs(self, x_Snd: Tensor, num_key_heads: int) -> Tensor:
        """(slots x K, answers x heads, d): all queries that see one prefix's key head."""
        n, d = x_Snd.shape[1:]
        grouped = x_Snd.reshape(-1, self.group_size, num_key_heads, n, d).transpose(1, 2)
        return grouped.reshape(-1, self.group_size * n, d)


def _weights(
    before_SC: Tensor, own_SC: Tensor, length_S: Tensor, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Softmax over a prefix's keys and an answer's own together; own keys from `length` + 1 on are not written yet."""
    ahead_SC = torch.arange(own_SC.shape[-1], device=own_SC.device) > length_S[:, None]
    own_SC = own_SC.masked_fill(ahead_SC[:, None, None], -torch.inf)
    weights_SC = (torch.cat((before_SC, own_SC), dim=-1) * scaling).softmax(dim=-1).to(dtype)
    return weights_SC[..., : before_SC.shape[-1]], weights_SC[..., before_SC.shape[-1] :]


def _of_answers(x_Pnd: Tensor, num_rows: int, num_key_heads: int, num_shared: int) -> Tensor:
    """Inverse of `_of_pairs`: (S, K, heads that share a key, d)."""
    group = x_Pnd.shape[1] // num_shared
    return (
        x_Pnd.view(-1, num_key_heads, group, num_shared, x_Pnd.shape[2])
        .transpose(1, 2)
        .reshape(num_rows, num_key_heads, num_shared, -1)
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Scores in float32 at least: rounded to 16 bits, weights would be off by percents."""
    if left.device.type == "cuda" and left.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return (left @ right).to(torch.promote_types(left.dtype, torch.float32))


class SlotSampler:
    """Samples answers of any number of pairs; buffers and graphs stay for the next call.

    Args:
        num_slots: Pairs that are written at once; with more pairs, one whose answers have all ended hands its slot to the next.
        graphs: Replay CUDA graphs; without them every step is run as it is (the only way on a CPU).
        compiled: Let torch.compile fuse the softmax of the attention.
    """

    def __init__(
        self,
        mllm: FrozenMLLM,
        layout: Layout,
        num_slots: int,
        group_size: int,
        max_new: int,
        *,
        temperature: float,
        top_p: float,
        graphs: bool,
        compiled: bool = False,
        steps: int = STEPS,
        bucket: int = BUCKET,
        most: int = MOST,
    ) -> None:
        self._mllm, self._first_id = mllm, layout.after_ids[-1]
        self.num_slots, self._group, self._max_new = num_slots, group_size, max_new
        self._temperature, self._top_p = temperature, top_p
        self._compiled, self._use_graphs, self._steps, self._bucket, self._most = compiled, graphs, steps, bucket, most
        self._first_position = mllm.answer_positions(layout, 1)[:, :1]
        self._memory: SlotMemory | None = None
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        device, num_rows = mllm.device, num_slots * group_size
        self._end_ids = torch.tensor(mllm.end_ids, device=device)
        self._last_S = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._ended_S = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._wide = torch.zeros((), dtype=torch.bool, device=device)
        self._uniform_SR = torch.zeros(num_rows, max_new, dtype=torch.float64, device=device)
        self._ids_SR = torch.full((num_rows, max_new), -1, device=device)
        self._support_SR = torch.zeros((num_rows, max_new), dtype=torch.int64, device=device)
        self._log_probs_SR = torch.zeros((num_rows, max_new), dtype=torch.float64, device=device)

    @torch.no_grad()
    def __call__(self, prefix: Prefix, uniform_PGR: np.ndarray) -> Completions:
        """As `mllm.sampling.sample`."""
        num_pairs, group, max_new = uniform_PGR.shape
        assert (group, max_new) == (self._group, self._max_new), "a sampler is made for one shape"
        memory = self._memory_for(prefix)
        uniform = torch.from_numpy(uniform_PGR).to(self._mllm.device)
        out: list[tuple[Tensor, ...]] = [()] * num_pairs
        waiting, running = list(range(num_pairs))[::-1], dict[int, int]()
        steps_of = [0] * self.num_slots
        slow = False
        while waiting or running:
            for slot in range(self.num_slots):
                if slot not in running and waiting:
                    running[slot] = waiting.pop()
                    self._begin(memory, slot, prefix, running[slot], uniform)
                    steps_of[slot] = 0
            for slot in set(range(self.num_slots)) - running.keys():
                steps_of[slot] = 0
                memory.length_S[self._rows(slot)] = 0  # idle rows write over their own first place
            furthest = max(steps_of[slot] for slot in running)
            num_steps = min(self._steps, self._max_new - furthest)
            slow = self._run(memory, num_steps, furthest + num_steps, slow)
            done_P = self._ended_S.view(self.num_slots, group).all(dim=1).tolist()  # the only question to the device
            for slot in list(running):
                steps_of[slot] += num_steps
                if done_P[slot] or steps_of[slot] == self._max_new:
                    out[running.pop(slot)] = self._taken(slot)
                    self._ended_S[self._rows(slot)] = True
        ids_SR, support_SR, log_probs_SR, ended_S = (torch.cat(parts) for parts in zip(*out, strict=True))
        longest = int((ids_SR >= 0).sum(dim=1).max())
        return Completions(ids_SR[:, :longest], support_SR[:, :longest], log_probs_SR.sum(dim=1), ended_S)

    def _rows(self, slot: int) -> slice:
        return slice(slot * self._group, (slot + 1) * self._group)

    def _memory_for(self, prefix: Prefix) -> SlotMemory:
        like = prefix.keys_values[0][0]
        if self._memory is None or self._memory.before[0][0].shape[1:] != like.shape[1:]:
            self._graphs.clear()
            sizes = (self.num_slots, self._group, self._max_new)
            self._memory = SlotMemory(len(prefix.keys_values), like, *sizes, compiled=self._compiled)
        return self._memory

    def _begin(self, memory: SlotMemory, slot: int, prefix: Prefix, pair: int, uniform_PGR: Tensor) -> None:
        rows = self._rows(slot)
        memory.put(slot, prefix, pair)
        self._last_S[rows] = self._first_id
        self._ended_S[rows] = False
        self._uniform_SR[rows] = uniform_PGR[pair]
        self._ids_SR[rows], self._support_SR[rows], self._log_probs_SR[rows] = -1, 0, 0.0

    def _taken(self, slot: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = self._rows(slot)
        found = (self._ids_SR, self._support_SR, self._log_probs_SR, self._ended_S)
        return tuple(x[rows].clone() for x in found)  # type: ignore[return-value]

    def _run(self, memory: SlotMemory, num_steps: int, reach: int, slow: bool) -> bool:
        """Take steps; again and slowly if a nucleus was too wide. Returns whether the slow way is the one to take from now on."""
        memory.reach = min(-(-reach // self._bucket) * self._bucket, self._max_new)
        if not slow:
            before = self._last_S.clone(), self._ended_S.clone(), memory.length_S.clone()
            self._wide.fill_(False)
            for _ in range(num_steps):
                self._replay(memory)
            if self._top_p >= 1 or not bool(self._wide):
                return False
            for kept, now in zip(before, (self._last_S, self._ended_S, memory.length_S), strict=True):
                now.copy_(kept)
        for _ in range(num_steps):
            self._step(memory, slow=True)
        return True

    def _replay(self, memory: SlotMemory) -> None:
        if not self._use_graphs:
            return self._step(memory)
        key = (memory.reach, self.num_slots)
        if key not in self._graphs:
            self._graphs[key] = self._captured(memory)
        return self._graphs[key].replay()

    def _captured(self, memory: SlotMemory) -> torch.cuda.CUDAGraph:
        state = (
            self._last_S,
            self._ended_S,
            memory.length_S,
            self._wide,
            self._ids_SR,
            self._support_SR,
            self._log_probs_SR,
        )
        kept = [x.clone() for x in state]
        # Libraries set themselves up in their first run, which a graph must not hold.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(memory)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._step(memory)
        for x, value in zip(state, kept, strict=True):
            x.copy_(value)
        return graph

    def _step(self, memory: SlotMemory, slow: bool = False) -> None:
        """One token of every answer; a row behind its end goes on, unheard."""
        mllm = self._mllm
        length_S1 = memory.length_S[:, None].clamp_max(self._max_new - 1)
        positions_3S1 = self._first_position[:, :, None] + length_S1
        hidden = mllm.run(mllm.embed(self._last_S)[:, None], positions_3S1, memory)
        logits_SV = mllm.logits(hidden[:, 0], self._temperature)
        uniform_S = self._uniform_SR.gather(1, length_S1)[:, 0]
        if slow:
            ids, log_probs, size = draw(logits_SV, uniform_S, self._top_p)
        else:
            ids, log_probs, size, wide = draw_on_device(logits_SV, uniform_S, self._top_p, self._most)
            self._wide.logical_or_((wide & ~self._ended_S).any())
        for table, value, nothing in (
            (self._ids_SR, ids, -1),
            (self._support_SR, size, 0),
            (self._log_probs_SR, log_probs, 0.0),
        ):
            # Not `where` with a number: that copies it from the host, which a graph cannot hold.
            table.scatter_(1, length_S1, value.masked_fill(self._ended_S, nothing)[:, None])
        self._last_S.copy_(ids)
        self._ended_S.logical_or_((ids[:, None] == self._end_ids).any(dim=1))
        memory.length_S.add_(1).clamp_max_(self._max_new - 1)
