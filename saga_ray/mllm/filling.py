"""Write template answers: every round feeds each row all that is certain, and draws one token.

Rows of different lengths stay apart from each other: each has its keys and values without gaps, exactly where scoring puts
them, and sees its own alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from saga_ray.mllm.attention import AnswerMemory, NewRows
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.sampling import Completions, draw
from saga_ray.mllm.template import FED, Template, Walk


@dataclass
class _Row:
    """An answer while it is written."""

    walk: Walk
    ids: list[int] = field(default_factory=list)
    sets: list[int] = field(default_factory=list)
    support: list[int] = field(default_factory=list)
    next_set: int | None = None
    """Which set the next token is drawn from; None when the answer is whole."""
    num_seen: int = 0
    """Tokens that the MLLM has seen, the last prompt token counted."""

    def go_on(self, drawn: int | None = None) -> None:
        """Walk to the next token that has to be drawn."""
        self.next_set = None
        while self.next_set is None:
            try:
                step = self.walk.send(drawn)
            except StopIteration:
                return
            drawn = None
            if isinstance(step, int):
                self.next_set = step
            else:
                self.ids += step
                self.sets += [FED] * len(step)
                self.support += [1] * len(step)

    def unseen(self, last_prompt_id: int) -> list[int]:
        """What the MLLM has to be fed before the next token can be drawn."""
        return [last_prompt_id, *self.ids][self.num_seen :]


class RaggedMemory(AnswerMemory):
    """Answers of different lengths; `max_new` includes the width of one round."""

    def __init__(self, prefix: list[tuple[Tensor, Tensor]], group_size: int, max_new: int) -> None:
        super().__init__(prefix, group_size, max_new)
        num_pairs, _, num_before, _ = prefix[0][0].shape
        self.lengths_S = torch.full((num_pairs * group_size,), num_before, device=prefix[0][0].device)

    def attend(self, layer: int, new: NewRows) -> Tensor:
        S, H, R, d = new.query_SHRd.shape
        num_key_heads, device = new.key_SKRd.shape[1], new.query_SHRd.device
        columns_SR = self.lengths_S.to(device)[:, None] + torch.arange(R, device=device)
        rows_S1 = torch.arange(S, device=device)[:, None]
        end = int(self.lengths_S.max()) + R
        key, value = self.buffers[layer]
        key[rows_S1, :, columns_SR] = new.key_SKRd.transpose(1, 2)
        value[rows_S1, :, columns_SR] = new.value_SKRd.transpose(1, 2)
        place_C = torch.arange(end, device=device)
        seen_SRC = place_C <= columns_SR[:, :, None]
        if new.window is not None:
            seen_SRC &= place_C > columns_SR[:, :, None] - new.window
        # Heads that share keys stand in the row axis, so that nothing is repeated.
        packed = new.query_SHRd.reshape(S, num_key_heads, -1, d)
        mask = seen_SRC[:, None].repeat(1, 1, H // num_key_heads, 1)
        found = scaled_dot_product_attention(
            packed, key[:, :, :end], value[:, :, :end], attn_mask=mask, scale=new.scaling
        )
        return found.reshape(S, H, R, d)

    def advance(self, num_S: Tensor) -> None:
        """So many of the columns just written belong to each answer; the others are written over."""
        self.lengths_S = self.lengths_S + num_S

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.lengths_S = self.lengths_S[rows]


@torch.no_grad()
def fill_in(
    mllm: FrozenMLLM,
    layout: Layout,
    prefix: Prefix,
    uniform_PGR: np.ndarray,
    template: Template,
    *,
    temperature: float,
    top_p: float,
) -> Completions:
    """Template answers of every pair; the token at place r of an answer is drawn with its uniform number r, fed ones with none."""
    num_pairs, group_size, max_new = uniform_PGR.shape
    assert template.longest <= max_new, "answers are whole"
    device = mllm.device
    uniform_SR = torch.from_numpy(uniform_PGR.reshape(num_pairs * group_size, max_new)).to(device)
    rows = [_Row(template.walk()) for _ in range(num_pairs * group_size)]
    log_probs_S = torch.zeros(len(rows), dtype=torch.float64, device=device)
    memory = RaggedMemory(prefix.keys_values, group_size, 2 * max_new)
    last = layout.after_ids[-1]
    first_position = int(layout.positions_3C[:, -1].max())
    for row in rows:
        row.go_on()
    held = list(range(len(rows)))  # rows in the memory
    while alive := [number for number in held if rows[number].next_set is not None]:
        if len(alive) <= 0.75 * len(held):
            memory.keep(torch.tensor([held.index(number) for number in alive], device=device))
            held = alive
        fed = [rows[number].unseen(last) if rows[number].next_set is not None else [] for number in held]
        width = max(map(len, fed))
        fed_SR = torch.tensor([ids + [last] * (width - len(ids)) for ids in fed], device=device)
        num_S = torch.tensor([len(ids) for ids in fed], device=device)
        starts_S = torch.tensor([rows[number].num_seen for number in held], device=device)
        positions_SR = first_position + starts_S[:, None] + torch.arange(width, device=device)
        hidden_SRD = mllm.run(mllm.embed(fed_SR), positions_SR.expand(3, -1, -1), memory)
        memory.advance(num_S)
        places = [place for place, number in enumerate(held) if rows[number].next_set is not None]
        hidden_SD = hidden_SRD[places, num_S[places] - 1]
        sets = torch.tensor([rows[number].next_set for number in alive], device=device)
        at = torch.tensor([len(rows[number].ids) for number in alive], device=device)
        allowed_SV = template.table_AV[sets]
        logits_SV = mllm.logits(hidden_SD, temperature).masked_fill(~allowed_SV, -torch.inf)
        new_S, log_prob_S, size_S = draw(logits_SV, uniform_SR[torch.tensor(alive, device=device), at], top_p)
        log_probs_S[alive] += log_prob_S
        for number, place, token, size in zip(alive, places, new_S.tolist(), size_S.tolist(), strict=True):
            row = rows[number]
            row.num_seen += len(fed[place])
            row.ids.append(token)
            row.sets.append(int(row.next_set))  # type: ignore[arg-type]
            row.support.append(size)
            row.go_on(token)
    return _completions([(row.ids, row.sets, row.support) for row in rows], log_probs_S, template)


def given_in(template: Template, answers: Sequence[str], device: torch.device) -> Completions:
    """Given answers in the template's form; supports and log-probs are left to the scorer."""
    ids, sets = template.given(answers)
    zeros_S = torch.zeros(len(answers), dtype=torch.float64, device=device)
    return _completions([(i, s, [0] * len(i)) for i, s in zip(ids, sets, strict=True)], zeros_S, template)


def _completions(
    rows: Sequence[tuple[list[int], list[int], list[int]]], log_probs_S: Tensor, template: Template
) -> Completions:
    longest, device = max(len(ids) for ids, _, _ in rows), log_probs_S.device

    def padded(column: int, fill: int) -> Tensor:
        return torch.tensor([row[column] + [fill] * (longest - len(row[column])) for row in rows], device=device)

    ended_S = torch.ones(len(rows), dtype=torch.bool, device=device)
    return Completions(padded(0, -1), padded(2, 0), log_probs_S, ended_S, padded(1, FED), template.table_AV)
