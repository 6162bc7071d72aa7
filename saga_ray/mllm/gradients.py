"""d loss / d visual tokens through the frozen MLLM: over a shared prefix, and the naive twin that it must equal.

Shared, and exact: the prefix is run once with its graph; its keys and values are detached as
leaves; the answers are scored over them in chunks, each adding to the leaves' gradients; one backward through the
prefix carries these to the tokens of all levels. Naive: every answer with its own copy of the whole prompt through the
library's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saga_ray.mllm.attention import Capture, ResponseMemory
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.head import head_log_probs
from saga_ray.mllm.sampling import Completions, nucleus_size, restrict
from saga_ray.rl.grpo import policy_loss_sum

# Rows of answers that are held at once with their graph.
MAX_ROWS = 4096


@dataclass(frozen=True)
class Policy:
    """The sampler's settings, replayed when its answers are scored."""

    temperature: float
    top_p: float


@dataclass(frozen=True)
class Scored:
    """What scoring P pairs' answers gives."""

    log_probs_SR: Tensor
    """float64, 0 for padding."""
    token_grads_P2LTD: Tensor | None
    attention: list[list[Tensor | None]]
    """Per answer and image: summed attention (T,), None where there is none."""


def token_log_probs(
    mllm: FrozenMLLM,
    hidden_ND: Tensor,
    ids_N: Tensor,
    support_N: Tensor | None,
    policy: Policy,
    sets: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """log pi of chosen tokens, on the support that they were drawn from; without one, on the nucleus found anew.

    Args:
        sets: of a template's tokens, the number of the set that each is drawn from (N,), and all sets (A, V).
    """
    logits_NV = mllm.logits(hidden_ND, policy.temperature)
    if sets is not None:
        logits_NV = logits_NV.masked_fill(~sets[1][sets[0]], -torch.inf)
    size_N = nucleus_size(logits_NV, policy.top_p) if support_N is None else support_N
    allowed_NV = restrict(logits_NV, size_N, ids_N)
    return allowed_NV.gather(1, ids_N[:, None])[:, 0] - allowed_NV.logsumexp(dim=1)


def _fed(ids_SR: Tensor, layout: Layout) -> Tensor:
    """Input ids of answers: the last prompt token, then the answer without its last token; padding is any legal id."""
    first_S1 = torch.full_like(ids_SR[:, :1], layout.after_ids[-1])
    return torch.cat((first_S1, ids_SR[:, :-1].clamp_min(0)), dim=1)


def _chunk_loss(
    mllm: FrozenMLLM,
    hidden_SRD: Tensor,
    ids_SR: Tensor,
    support_SR: Tensor | None,
    weights_SR: Tensor,
    policy: Policy,
    sets: tuple[Tensor, Tensor] | None,
    reference_SR: Tensor | None,
) -> Tensor:
    """log pi (S, R) of a chunk; if autograd is on, the loss is already carried back to `hidden_SRD`'s graph.

    What a template fed has probability 1: log pi is 0 there, and the logits are not even computed.
    """
    mask_SR = ids_SR >= 0 if sets is None else sets[0] >= 0
    backward = torch.is_grad_enabled() and hidden_SRD.requires_grad
    ids_N, support_N = ids_SR[mask_SR], None if support_SR is None else support_SR[mask_SR]
    weights_N = weights_SR[mask_SR] if backward else None
    sets_N = None if sets is None else (sets[0][mask_SR], sets[1])
    log_probs_N, grad_ND = head_log_probs(
        mllm,
        hidden_SRD.detach()[mask_SR],
        ids_N,
        support_N,
        weights_N,
        policy.temperature,
        policy.top_p,
        sets_N,
        None if reference_SR is None else reference_SR[mask_SR],
    )
    if grad_ND is not None:
        grad_SRD = torch.zeros_like(hidden_SRD)
        grad_SRD[mask_SR] = grad_ND
        hidden_SRD.backward(grad_SRD)
    return torch.zeros(ids_SR.shape, dtype=torch.float64, device=ids_SR.device).masked_scatter(mask_SR, log_probs_N)


def score_shared(
    mllm: FrozenMLLM,
    layout: Layout,
    prefix: Prefix,
    tokens_P2LTD: Tensor | None,
    completions: Completions,
    weights_SR: Tensor,
    policy: Policy,
    *,
    pairs: Sequence[int],
    replay_support: bool,
    capture_layer: int | None = None,
    rows: Sequence[tuple[list[int], list[int]]] | None = None,
    keep_graph: bool = False,
    reference_SR: Tensor | None = None,
) -> Scored:
    """Score the answers of chosen pairs over their shared prefixes.

    Args:
        tokens_P2LTD: The tokens that `prefix` was run from, with graph; None for no gradient.
        pairs: Positions of the pairs to score; log-probs and attention come back for these alone, in this order, the
            gradient for all pairs, zero where a pair was not chosen.
        weights_SR: Of every completion's tokens, see `rl.grpo.policy_loss_sum`.
        replay_support: Use the recorded support sizes (sampled answers), not the nucleus (given answers).
        capture_layer: 0-based layer whose attention is read in `rows` (per answer: rows of image 1 and 2), if any.
        keep_graph: The prefix will be asked for another gradient.
        reference_SR: log pi of another policy; every weight is then larger by how much that exceeds this policy's own.
    """
    num_answers = len(completions.token_ids_SR) // len(prefix.keys_values[0][0])
    with_grad = tokens_P2LTD is not None
    index_K = torch.tensor(pairs, device=mllm.device)
    leaves = [
        tuple(x.detach()[index_K.to(x.device)].requires_grad_(with_grad) for x in pair) for pair in prefix.keys_values
    ]
    lengths_KG = completions.num_tokens_S.view(-1, num_answers)[index_K]
    rows_of_KG = index_K[:, None] * num_answers + torch.arange(num_answers, device=mllm.device)
    log_probs: list[Tensor] = []
    attention: list[list[Tensor | None]] = []
    with torch.set_grad_enabled(with_grad):
        for chunk in _chunks(lengths_KG):
            chosen, longest = rows_of_KG[chunk].flatten(), int(lengths_KG[chunk].max())
            ids_SR = completions.token_ids_SR[chosen, :longest]
            support_SR = completions.support_SR[chosen, :longest] if replay_support else None
            capture = None
            if capture_layer is not None and rows is not None:
                capture = Capture(capture_layer, [rows[i] for i in chosen.tolist()], layout.image_columns)
            memory = ResponseMemory([(k[chunk[0]], v[chunk[0]]) for k, v in leaves], capture, mllm.split)
            positions = mllm.answer_positions(layout, longest)
            hidden_SRD = mllm.run(mllm.embed(_fed(ids_SR, layout)), positions, memory)
            sets = completions.sets_of(chosen, longest)
            beside_SR = None if reference_SR is None else reference_SR[chosen, :longest]
            weights = weights_SR[chosen, :longest]
            found_SR = _chunk_loss(mllm, hidden_SRD, ids_SR, support_SR, weights, policy, sets, beside_SR)
            log_probs.append(torch.nn.functional.pad(found_SR, (0, weights_SR.shape[1] - longest)))
            attention += capture.sums_S2T if capture is not None else [[None, None]] * len(chosen)
    grads = None
    if tokens_P2LTD is not None:
        grads = _through_prefix(prefix, leaves, index_K, tokens_P2LTD, keep_graph)
    return Scored(torch.cat(log_probs), grads, attention)


def _through_prefix(
    prefix: Prefix, leaves: Sequence[tuple[Tensor, ...]], index_K: Tensor, tokens_P2LTD: Tensor, keep_graph: bool
) -> Tensor:
    """Carry the gradients that gathered on keys and values of pairs `index_K` back to the tokens."""
    made, seeds = [], []
    for made_of_layer, leaves_of_layer in zip(prefix.made, leaves, strict=True):
        for made_PKCd, leaf in zip(made_of_layer, leaves_of_layer, strict=True):
            assert leaf.grad is not None
            own = leaf.grad[:, :, -made_PKCd.shape[2] :]  # behind the constant text
            made.append(made_PKCd)
            seeds.append(torch.zeros_like(made_PKCd).index_copy(0, index_K.to(own.device), own))
    return torch.autograd.grad(made, [tokens_P2LTD], seeds, retain_graph=keep_graph)[0]


def _chunks(lengths_PG: Tensor) -> list[tuple[slice, slice]]:
    """Cut pairs x answers so that a chunk has at most MAX_ROWS rows: whole groups, or parts of one group."""
    num_pairs, num_answers = lengths_PG.shape
    longest = int(lengths_PG.max())
    if num_answers * longest <= MAX_ROWS:
        step = MAX_ROWS // (num_answers * longest)
        return [(slice(p, p + step), slice(0, num_answers)) for p in range(0, num_pairs, step)]
    # Parts of about one size: what is held at once is the largest.
    num_parts = -(-num_answers // max(1, MAX_ROWS // longest))
    step = -(-num_answers // num_parts)
    return [
        (slice(p, p + 1), slice(g, min(g + step, num_answers)))
        for p in range(num_pairs)
        for g in range(0, num_answers, step)
    ]


@torch.enable_grad()
def naive_score(
    mllm: FrozenMLLM,
    layout: Layout,
    tokens_P2LTD: Tensor,
    completions: Completions,
    weights_SR: Tensor,
    policy: Policy,
    *,
    pairs: Sequence[int],
    replay_support: bool,
) -> Scored:
    """The slow obvious version: every answer with its own copy of the prompt, the library's forward, plain autograd."""
    num_answers = len(completions.token_ids_SR) // len(tokens_P2LTD)
    prompt = torch.tensor(layout.prompt_ids(mllm.model.config.image_token_id), device=mllm.device)
    grads = torch.zeros_like(tokens_P2LTD, requires_grad=False)
    log_probs = []
    for pair in pairs:
        group = slice(pair * num_answers, (pair + 1) * num_answers)
        ids_GR = completions.token_ids_SR[group]
        tokens_2LTD = tokens_P2LTD[pair].detach().requires_grad_()
        hidden_GRD = naive_hidden(mllm, layout, prompt, tokens_2LTD, ids_GR)
        sets = completions.sets_of(group, ids_GR.shape[1])
        mask_GR = ids_GR >= 0 if sets is None else sets[0] >= 0
        sets_N = None if sets is None else (sets[0][mask_GR], sets[1])
        support = completions.support_SR[group][mask_GR] if replay_support else None
        log_probs_N = token_log_probs(mllm, hidden_GRD[mask_GR], ids_GR[mask_GR], support, policy, sets_N)
        log_probs_GR = torch.zeros(ids_GR.shape, dtype=log_probs_N.dtype, device=mllm.device)
        log_probs_GR = log_probs_GR.masked_scatter(mask_GR, log_probs_N)
        loss = policy_loss_sum(log_probs_GR, weights_SR[group])
        grads[pair] = torch.autograd.grad(loss, tokens_2LTD)[0]
        log_probs.append(log_probs_GR.detach().double())
    return Scored(torch.cat(log_probs), grads, [[None, None]] * (len(pairs) * num_answers))


def naive_hidden(mllm: FrozenMLLM, layout: Layout, prompt: Tensor, tokens_2LTD: Tensor, ids_GR: Tensor) -> Tensor:
    """Final hidden states (G, R, D) of the rows that predict the answers' tokens."""
    num_answers, num_tokens = ids_GR.shape
    fill = torch.where(ids_GR < 0, mllm.end_ids[0], ids_GR)
    input_ids = torch.cat((prompt.expand(num_answers, -1), fill), dim=1)
    rows = mllm.answer_positions(layout, num_tokens + 1)[:, 1:]
    positions_3C = torch.cat((layout.positions_3C, rows), dim=1)
    hidden = library_hidden(mllm, input_ids, positions_3C, tokens_2LTD.transpose(0, 1))
    return hidden[:, len(prompt) - 1 : -1]


def library_hidden(mllm: FrozenMLLM, input_ids_GC: Tensor, positions_3C: Tensor, levels_L2TD: Tensor) -> Tensor:
    """Final hidden states (G, C, D) by the library's own forward, the same two images in every row."""
    family, num_rows = mllm.family, len(input_ids_GC)
    levels = [[*level_2TD] * num_rows for level_2TD in levels_L2TD]
    return mllm.model.model(
        input_ids=input_ids_GC,
        position_ids=family.library_positions(positions_3C, num_rows),
        use_cache=False,
        **family.library_inputs(mllm.model, levels, input_ids_GC),
    ).last_hidden_state
