"""Requests cut into parts and joined with others, and their results put together and taken apart again.

Nothing of this changes an answer: randomness is keyed by pair, and results are sums (laws 2 and 5 of the scorer).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saga_ray.types import ScoreRequest, ScoreResult, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor


def tokens_of_pair(request: ScoreRequest, told: Mapping[str, str], group_size: int) -> int:
    """Most tokens that a pair of this request can take: its prompt once, and every answer at its longest.

    Args:
        told: the scorer's `describe()`.
        group_size: G of sampled answers.
    """
    height, width = request.tokens.grid_hw
    num_answers = len(request.answers[0]) if request.answers else group_size
    return int(told["prompt_tokens"]) + 2 * height * width + num_answers * int(told["max_new_tokens"])


def num_parts(num_pairs: int, tokens_per_pair: int, budget: int, at_least: int = 1) -> int:
    """Parts of equal size, of at most `budget` tokens each and never less than one pair; `at_least` if there are so many pairs."""
    pairs_per_part = max(1, budget // tokens_per_pair)
    return max(1, math.ceil(num_pairs / pairs_per_part), min(at_least, num_pairs))


def split_request(request: ScoreRequest, num_parts: int) -> list[ScoreRequest]:
    """Cut the pairs into at most `num_parts` runs of plan order; each part carries every image that it shows, once."""
    num_pairs = len(request.pairs)
    num_parts = max(1, min(num_parts, num_pairs))
    edges = [num_pairs * part // num_parts for part in range(num_parts + 1)]
    return [_only(request, slice(*ends)) for ends in itertools.pairwise(edges)]


def _only(request: ScoreRequest, chosen: slice) -> ScoreRequest:
    pairs = request.pairs[chosen]
    images = sorted({position for pair in pairs for position in (pair.first, pair.second)})
    where = {image: position for position, image in enumerate(images)}

    def shown(tokens: VisualTokens) -> VisualTokens:
        return tokens if len(images) == len(tokens) else replace(tokens, tokens_NLTD=tokens.tokens_NLTD[images])

    return replace(
        request,
        pairs=tuple(replace(pair, first=where[pair.first], second=where[pair.second]) for pair in pairs),
        tokens=shown(request.tokens),
        reference=None if request.reference is None else shown(request.reference),
        answers=None if request.answers is None else request.answers[chosen],
        rewards_PG=None if request.rewards_PG is None else request.rewards_PG[chosen],
        origins_P=None if request.origins_P is None else request.origins_P[chosen],
    )


def kind(request: ScoreRequest) -> tuple[Any, ...]:
    """What must be equal for requests to be joined."""
    num_answers = len(request.answers[0]) if request.answers else None
    given = (num_answers, request.rewards_PG is not None, request.reference is not None)
    return (request.options, request.tokens.grid_hw, request.tokens.tokens_NLTD.dtype, *given)


def join_requests(requests: Sequence[ScoreRequest]) -> ScoreRequest:
    """One request for the pairs of all, which keep the keys of their randomness; all must be of one `kind`."""
    import torch

    if len(requests) == 1:
        return requests[0]
    assert len({kind(request) for request in requests}) == 1, "requests of different kinds"
    starts = list(itertools.accumulate((len(request.tokens) for request in requests), initial=0))
    placed = list(zip(requests, starts[:-1], strict=True))

    def joined(tensors: list[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    first = requests[0]
    tokens_NLTD = torch.cat([request.tokens.tokens_NLTD for request in requests])
    reference_NLTD = joined([None if r.reference is None else r.reference.tokens_NLTD for r in requests])
    return replace(
        first,
        pairs=tuple(
            replace(pair, first=start + pair.first, second=start + pair.second)
            for request, start in placed
            for pair in request.pairs
        ),
        tokens=replace(first.tokens, tokens_NLTD=tokens_NLTD),
        reference=None if reference_NLTD is None else replace(first.tokens, tokens_NLTD=reference_NLTD),
        answers=None if first.answers is None else tuple(a for request in requests for a in request.answers or ()),
        rewards_PG=joined([request.rewards_PG for request in requests]),
        origins_P=tuple(origin for request in requests for origin in origins(request)),
    )


def origins(request: ScoreRequest) -> tuple[tuple[int, int], ...]:
    """(seed, micro-batch) of every pair."""
    return request.origins_P or ((request.seed, request.micro_batch),) * len(request.pairs)


def split_result(whole: ScoreResult, sizes: Sequence[int], end_ids: Sequence[int]) -> list[ScoreResult]:
    """The results of joined requests with `sizes` pairs each; counters are counted anew, seconds shared out by pairs.

    Args:
        end_ids: ids that end an answer; one without was cut.
    """
    if len(sizes) == 1:
        return [whole]
    edges = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return [_part(whole, slice(*ends), end_ids) for ends in edges]


def _part(whole: ScoreResult, chosen: slice, end_ids: Sequence[int]) -> ScoreResult:
    import torch

    tensors = {name: tensor[chosen] for name, tensor in whole.tensors().items()}
    # Of what was fed as well: that is no generated token.
    lengths_PG = (tensors["token_ids_PGR"] >= 0).sum(dim=2)
    longest = int(lengths_PG.max()) if lengths_PG.numel() else 0
    tensors["token_ids_PGR"] = ids_PGR = tensors["token_ids_PGR"][:, :, :longest]
    ended_PG = torch.isin(ids_PGR, torch.tensor(list(end_ids), device=ids_PGR.device)).any(dim=2)
    share = (chosen.stop - chosen.start) / max(1, len(whole.rewards_PG))
    counters = {name: value * share if name.startswith("seconds/") else value for name, value in whole.counters.items()}
    counters |= {
        "num_tokens": int(tensors["num_tokens_PG"].sum()),
        "num_fed": int((lengths_PG - tensors["num_tokens_PG"]).sum()),
        "malformed": int((~tensors["well_formed_PG"]).sum()),
        "truncated": int((~ended_PG).sum()),
        "zero_advantage_pairs": int((~tensors["contributes_P"]).sum()),
    }
    return ScoreResult(texts_PG=whole.texts_PG[chosen], counters=counters, **tensors)


def join_results(parts: Sequence[ScoreResult]) -> ScoreResult:
    """Put the parts of a request together again; sums and counts add up, names of processes are joined."""
    import torch

    if len(parts) == 1:
        return parts[0]
    longest = max(part.token_ids_PGR.shape[2] for part in parts)
    padded = [
        torch.nn.functional.pad(part.token_ids_PGR, (0, longest - part.token_ids_PGR.shape[2]), value=-1)
        for part in parts
    ]
    tensors = {
        name: torch.cat([part.tensors()[name] for part in parts])
        for name in parts[0].tensors()
        if name != "token_ids_PGR"
    }
    counters: dict[str, float | str] = {}
    for part in parts:
        for name, value in part.counters.items():
            if isinstance(value, str):
                seen = str(counters.get(name, "")).split(",")
                counters[name] = ",".join(dict.fromkeys([*filter(None, seen), value]))
            else:
                counters[name] = float(counters.get(name, 0.0)) + value
    texts = tuple(texts for part in parts for texts in part.texts_PG)
    return ScoreResult(texts_PG=texts, token_ids_PGR=torch.cat(padded), counters=counters, **tensors)
