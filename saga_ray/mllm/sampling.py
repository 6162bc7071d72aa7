"""Write answers token by token: one keyed uniform number per token, inverse CDF in float64, rows stop at their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saga_ray.mllm.decoding import decode_memory
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix


@dataclass(frozen=True)
class Completions:
    """S = pairs x answers completions, in pair order."""

    token_ids_SR: Tensor
    """int64, padded with -1, the end token included."""
    support_SR: Tensor
    """int64: how many of the most likely tokens each token was drawn from; V without truncation."""
    log_probs_S: Tensor
    """float64, sums over tokens at the sampling temperature, on the sampled support."""
    ended_S: Tensor
    """bool: False for an answer that was cut."""
    sets_SR: Tensor | None = None
    """int64, of template answers: which set each token was drawn from, -1 for fed ones and padding."""
    table_AV: Tensor | None = None
    """bool: which tokens each of those sets holds."""

    @property
    def num_tokens_S(self) -> Tensor:
        """Counted from the tokens up to the end token, which counts."""
        return (self.token_ids_SR >= 0).sum(dim=1)

    @property
    def drawn_SR(self) -> Tensor:
        """bool: tokens that the policy chose; not padding, and not what a template fed."""
        return self.token_ids_SR >= 0 if self.sets_SR is None else self.sets_SR >= 0

    @property
    def num_drawn_S(self) -> Tensor:
        """How many those are."""
        return self.drawn_SR.sum(dim=1)

    def sets_of(self, rows: Tensor | slice, num_tokens: int) -> tuple[Tensor, Tensor] | None:
        """Of some answers' first tokens: numbers of the sets that they were drawn from, and all sets; None if anything may stand anywhere."""
        if self.sets_SR is None or self.table_AV is None:
            return None
        return self.sets_SR[rows, :num_tokens], self.table_AV


def uniform_numbers(
    seed: int, micro_batch: int, pair_numbers: Sequence[int], group_size: int, num_tokens: int
) -> np.ndarray:
    """(pairs, answers, tokens) in [0, 1): Philox keyed by (seed, micro-batch), its counter by (pair, answer).

    A number depends on nothing but its own key, so neither on what else is sampled nor on `num_tokens`.
    """
    mask = 2**64 - 1
    out = np.empty((len(pair_numbers), group_size, num_tokens))
    for row, pair in enumerate(pair_numbers):
        for answer in range(group_size):
            key = [seed & mask, micro_batch & mask]
            bits = np.random.Philox(key=key, counter=[0, 0, pair & mask, answer])
            out[row, answer] = np.random.Generator(bits).random(num_tokens)
    return out


def nucleus_size(logits_SV: Tensor, top_p: float) -> Tensor:
    """int64 (rows,): how many most likely tokens hold at least `top_p` of the probability; ties at the edge belong to it."""
    if top_p >= 1:
        return torch.full((len(logits_SV),), logits_SV.shape[1], device=logits_SV.device)
    sorted_SV = logits_SV.detach().double().sort(dim=1, descending=True).values
    probs_SV = sorted_SV.softmax(dim=1)
    size_S1 = ((probs_SV.cumsum(dim=1) - probs_SV) < top_p).sum(dim=1, keepdim=True)
    return (sorted_SV >= sorted_SV.gather(1, size_S1 - 1)).sum(dim=1)


def restrict(logits_SV: Tensor, size_S: Tensor, chosen_S: Tensor | None = None) -> Tensor:
    """Logits with everything outside the `size` most likely tokens at -inf; `chosen` tokens always stay.

    A token drawn at the edge of its support may stand just outside when logits are computed anew: rounding must not
    make it impossible.
    """
    if bool((size_S >= logits_SV.shape[1]).all()):
        return logits_SV
    top_SK = logits_SV.detach().topk(int(size_S.max()), dim=1).values
    edge_S1 = top_SK.gather(1, size_S[:, None] - 1)
    if chosen_S is not None:
        edge_S1 = torch.minimum(edge_S1, logits_SV.detach().gather(1, chosen_S[:, None]))
    return logits_SV.masked_fill(logits_SV < edge_S1, -torch.inf)


def draw(logits_SV: Tensor, uniform_S: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse CDF: the first token whose cumulated probability exceeds the uniform number.

    Returns:
        ids (S,), their log-probabilities on the support (S,) float64, support sizes (S,).
    """
    size_S = nucleus_size(logits_SV, top_p)
    probs_SV = restrict(logits_SV, size_S).double().softmax(dim=1)
    cumulated_SV = probs_SV.cumsum(dim=1)
    total_S1 = cumulated_SV[:, -1:].contiguous()
    # Below the total, or rounding could select a token of probability 0 behind the last possible one.
    point_S1 = torch.minimum(uniform_S[:, None] * total_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))
    ids_S1 = torch.searchsorted(cumulated_SV, point_S1, right=True)
    return ids_S1[:, 0], probs_SV.gather(1, ids_S1)[:, 0].log(), size_S


@torch.no_grad()  # not inference_mode: its tensors could not be saved for a backward pass later
def sample(
    mllm: FrozenMLLM,
    layout: Layout,
    prefix: Prefix,
    uniform_PGR: np.ndarray,
    *,
    temperature: float,
    top_p: float,
) -> Completions:
    """Answers of every pair, at most uniform_PGR.shape[2] tokens long."""
    num_pairs, group_size, max_new = uniform_PGR.shape
    num_rows, device = num_pairs * group_size, mllm.device
    uniform_SR = torch.from_numpy(uniform_PGR.reshape(num_rows, max_new)).to(device)
    ids_SR = torch.full((num_rows, max_new), -1, device=device)
    support_SR = torch.zeros((num_rows, max_new), dtype=torch.int64, device=device)
    log_probs_S = torch.zeros(num_rows, dtype=torch.float64, device=device)
    ended_S = torch.zeros(num_rows, dtype=torch.bool, device=device)
    end_ids = torch.tensor(mllm.end_ids, device=device)
    memory = decode_memory(mllm, prefix, group_size, max_new)
    alive = torch.arange(num_rows, device=device)
    held = alive  # rows in the memory: those alive, and dead ones not worth a copy yet
    last_S = torch.full((num_rows,), layout.after_ids[-1], device=device)
    for step in range(max_new):
        hidden = mllm.run(mllm.embed(last_S[held])[:, None], mllm.answer_positions(layout, 1, step), memory)
        memory.advance()
        new, log_prob, size = draw(mllm.logits(hidden[:, 0], temperature), uniform_SR[held, step], top_p)
        writing = ~ended_S[held]
        ids_SR[held, step] = torch.where(writing, new, -1)
        support_SR[held, step] = torch.where(writing, size, 0)
        log_probs_S[held] += torch.where(writing, log_prob, 0.0)
        last_S[held] = new
        ended_S[held] |= torch.isin(new, end_ids)
        alive = held[~ended_S[held]]
        if len(alive) == 0:
            break
        if len(alive) <= 0.75 * len(held):
            memory.keep((~ended_S[held]).nonzero()[:, 0])
            held = alive
    longest = int((ids_SR >= 0).sum(dim=1).max())
    return Completions(ids_SR[:, :longest], support_SR[:, :longest], log_probs_S, ended_S)


def given(mllm: FrozenMLLM, answers: Sequence[str]) -> Completions:
    """Tokenise answers that are given, each with the end token behind it; supports and log-probs are left to the scorer.

    Raises:
        ValueError: for an answer that holds an id which no answer may hold.
    """
    rows = [[*mllm.tokenizer.encode(text, add_special_tokens=False), mllm.end_ids[0]] for text in answers]
    longest = max(map(len, rows))
    ids_SR = torch.full((len(rows), longest), -1, device=mllm.device)
    for row, ids in enumerate(rows):
        ids_SR[row, : len(ids)] = torch.tensor(ids, device=mllm.device)
        if bool(torch.isinf(mllm.bias_V[ids_SR[row, : len(ids)]]).any()):
            raise ValueError(f"answers: {answers[row]!r} holds an image placeholder; remove it")
    zeros_S = torch.zeros(len(rows), dtype=torch.float64, device=mllm.device)
    return Completions(ids_SR, torch.zeros_like(ids_SR), zeros_S, torch.ones_like(zeros_S, dtype=torch.bool))
