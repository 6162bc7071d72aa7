"""A request's parts, scored one after another or by several scorers, put together again."""

from __future__ import annotations

from collections.abc import Sequence

from saga_ray.types import ScoreResult


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
