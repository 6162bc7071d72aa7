"""Exact nearest neighbours by cosine, whose order depends on neither chunk size, threads, device nor order of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

GRID = 2.0**26
"""Steps per unit of the fixed-point grid on which similarities are exact."""

_ELEMENTS_PER_CHUNK = 2**24  # 128 MiB of float64 similarities


def unit_embeddings(embeddings_NE: np.ndarray | Tensor, image_ids: Sequence[str]) -> np.ndarray:
    """Rows scaled to unit length, in float64.

    Raises:
        ValueError: naming the images whose embedding is not finite or is zero.
    """
    if isinstance(embeddings_NE, Tensor):
        embeddings_NE = embeddings_NE.detach().to("cpu", torch.float64).numpy()
    rows_NE = np.ascontiguousarray(embeddings_NE, dtype=np.float64)
    assert rows_NE.ndim == 2 and rows_NE.shape[0] == len(image_ids), "one embedding per image"
    _refuse(~np.isfinite(rows_NE).all(axis=1), image_ids, "are not finite", "the encoder has diverged")
    largest_N1 = np.abs(rows_NE).max(axis=1, keepdims=True, initial=0.0)
    _refuse(largest_N1[:, 0] == 0, image_ids, "are zero", "the encoder has collapsed")
    rows_NE = rows_NE / largest_N1  # first, so that neither huge nor tiny embeddings leave float64's range
    return rows_NE / np.sqrt(np.square(rows_NE).sum(axis=1, keepdims=True))


def _refuse(bad_N: np.ndarray, image_ids: Sequence[str], what: str, cause: str) -> None:
    if bad_N.any():
        bad = np.flatnonzero(bad_N)
        names = ", ".join(image_ids[row] for row in bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise ValueError(
            f"embeddings of {len(bad)} of {len(image_ids)} images {what} ({names}): {cause}; "
            f"evaluate an earlier checkpoint or lower the learning rates (optim.lr_*)"
        )


def on_grid(unit_NE: np.ndarray, device: str = "cpu") -> Tensor:
    """Coordinates as whole numbers of 2^-26, in float64.

    A product of two such coordinates is a whole number, and by Cauchy-Schwarz no partial sum of a dot product
    exceeds |a| |b| < 2^53: float64 adds them without rounding, in any order. So a matrix product gives the same bits for
    every chunk size, thread count and device, and equal embeddings are exact ties. The cosine moves by about 1e-8,
    which is less than float32's own rounding.
    """
    return torch.from_numpy(np.rint(unit_NE * GRID)).to(device)


def nearest(
    grid_NE: Tensor, num_nearest: int, chunk: int | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Nearest rows of every row, itself excluded, in chunks of queries.

    Equal similarities are ordered by row number, so the caller's order of rows decides ties.

    Args:
        grid_NE: from `on_grid`.
        num_nearest: at most N - 1.
        chunk: Queries at once; by default what fits 128 MiB. Halved as long as memory does not suffice.

    Yields:
        (first query row, neighbours (chunk, num_nearest) int64, cosines (chunk, num_nearest)).
    """
    num_rows = len(grid_NE)
    assert 1 <= num_nearest < num_rows, f"{num_nearest} neighbours of {num_rows} rows"
    chunk = chunk or max(1, _ELEMENTS_PER_CHUNK // num_rows)
    start = 0
    while start < num_rows:
        try:
            neighbours, cosines = nearest_of_chunk(grid_NE, start, min(start + chunk, num_rows), num_nearest)
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if chunk == 1 or not _is_out_of_memory(error):
                raise
            chunk = max(1, chunk // 2)
            continue
        yield start, neighbours, cosines
        start += len(neighbours)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's allocator for the CPU raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def nearest_of_chunk(grid_NE: Tensor, start: int, stop: int, num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and cosines of rows `start` to `stop`."""
    similarity_SN = grid_NE[start:stop] @ grid_NE.T
    own = torch.arange(stop - start, device=grid_NE.device)
    similarity_SN[own, own + start] = -torch.inf
    # topk orders ties as it likes. So it only gives the threshold; all rows at or above it are then sorted by us.
    threshold_S1 = similarity_SN.topk(num_nearest, dim=1).values[:, -1:]
    query, row = (similarity_SN >= threshold_S1).nonzero(as_tuple=True)
    value = similarity_SN[query, row].cpu().numpy()
    query, row = query.cpu().numpy(), row.cpu().numpy()
    order = np.lexsort((row, -value, query))
    first_S = np.searchsorted(query, np.arange(stop - start))  # nonzero is in order of queries, and so stays the sort
    chosen = order[first_S[:, None] + np.arange(num_nearest)]
    return row[chosen], value[chosen] / GRID**2
