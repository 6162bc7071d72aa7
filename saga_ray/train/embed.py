"""Embeds a whole split, shared among ranks in fixed chunks, so that the numbers do not depend on how many ranks there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.encoder.encoder import Encoder
from saga_ray.train.context import RunContext
from saga_ray.types import ImageTable, OnProgress

_CHUNKS_AT_ONCE = 256
"""Chunks whose embeddings are held while centroids are summed."""


@torch.no_grad()
def embed_table(
    encoder: Encoder,
    table: ImageTable,
    image_size: int,
    chunk: int,
    context: RunContext,
    *,
    skip_broken: bool = False,
    rows: Sequence[int] | None = None,
    on_images: OnProgress | None = None,
) -> np.ndarray:
    """Embeddings (N, E), float32 or wider, of all images of a table or of some rows, on every rank.

    Args:
        chunk: images at once; chunk c is embedded by rank c modulo the number of ranks.
        skip_broken: give images that cannot be read the embedding 0, instead of an error.
        on_images: told how many images are embedded, and of how many, as if all ranks were equally fast.

    Raises:
        BrokenImageError: naming the file.
    """
    rows = range(len(table)) if rows is None else rows
    parts: dict[int, torch.Tensor] = {}
    for number, start in enumerate(range(0, len(rows), chunk)):
        if number % context.world_size == context.rank:
            here = [int(row) for row in rows[start : start + chunk]]
            images_NHWC, readable_N = load_images(table, here, image_size, skip_broken)
            part = encoder(torch.from_numpy(images_NHWC).to(context.device)).embedding_NE
            parts[start] = part * torch.from_numpy(readable_N).to(part)[:, None]
            if on_images is not None:
                on_images(min(start + chunk, len(rows)), len(rows))
    width = max(context.gather(max((part.shape[1] for part in parts.values()), default=0)))
    embeddings_NE = torch.zeros(len(rows), width, dtype=encoder.tower.dtype, device=context.device)
    for start, part in parts.items():
        embeddings_NE[start : start + len(part)] = part
    return context.all_reduce_sum([embeddings_NE])[0].cpu().numpy()


def load_images(table: ImageTable, rows: list[int], size: int, skip_broken: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of some rows, and which could be read; the others are black."""
    try:
        return np.array(table.source.load(rows, size)), np.ones(len(rows), dtype=bool)
    except BrokenImageError:
        if not skip_broken:
            raise
    images_NHWC, readable_N = np.zeros((len(rows), size, size, 3), np.uint8), np.ones(len(rows), dtype=bool)
    for place, row in enumerate(rows):
        try:
            images_NHWC[place] = table.source.load([row], size)[0]
        except BrokenImageError:
            readable_N[place] = False
    return images_NHWC, readable_N


def embed_centroids(
    encoder: Encoder,
    table: ImageTable,
    rows_N: np.ndarray,
    image_size: int,
    chunk: int,
    context: RunContext,
    on_images: OnProgress | None = None,
) -> np.ndarray:
    """Mean embedding (C, E), float64, of every class over `rows_N`; unreadable images do not count.

    Equals `class_centroids` of all embeddings at once, bit by bit, but holds those of some chunks only.
    """
    sums = CentroidSums(len(table.class_names))
    step = chunk * _CHUNKS_AT_ONCE
    for start in range(0, len(rows_N), step):
        here_N = rows_N[start : start + step]
        told = None if on_images is None else lambda done, _, before=start: on_images(before + done, len(rows_N))
        embeddings_NE = embed_table(
            encoder, table, image_size, chunk, context, skip_broken=True, rows=here_N, on_images=told
        )
        sums.add(embeddings_NE, table.labels_N[here_N])
    return sums.means()


class CentroidSums:
    """Sums of embeddings by class, in the order in which they come; images with embedding 0 do not count."""

    def __init__(self, num_classes: int) -> None:
        self._sums_CE: np.ndarray | None = None
        self._counts_C = np.zeros(num_classes)

    def add(self, embeddings_NE: np.ndarray, labels_N: np.ndarray) -> None:
        """Take more images into account."""
        if self._sums_CE is None:
            self._sums_CE = np.zeros((len(self._counts_C), embeddings_NE.shape[1]))
        np.add.at(self._sums_CE, labels_N, embeddings_NE.astype(np.float64))
        self._counts_C += np.bincount(labels_N, weights=embeddings_NE.any(axis=1), minlength=len(self._counts_C))

    def means(self) -> np.ndarray:
        """(C, E), float64."""
        assert self._sums_CE is not None
        return self._sums_CE / np.maximum(self._counts_C, 1)[:, None]


def class_centroids(embeddings_NE: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Mean embedding (C, E), float64, of every class; images with embedding 0 do not count."""
    sums = CentroidSums(int(labels_N.max()) + 1)
    sums.add(embeddings_NE, labels_N)
    return sums.means()
