"""Embeds a whole split, shared among ranks in fixed chunks, so that the numbers do not depend on how many ranks there are."""

from __future__ import annotations

import numpy as np
import torch

from saga_ray.data.images import BrokenImageError
from saga_ray.encoder.encoder import Encoder
from saga_ray.train.context import RunContext
from saga_ray.types import ImageTable


@torch.no_grad()
def embed_table(
    encoder: Encoder, table: ImageTable, image_size: int, chunk: int, context: RunContext, *, skip_broken: bool = False
) -> np.ndarray:
    """Embeddings (N, E), float32 or wider, of all images of a table, on every rank.

    Args:
        chunk: images at once; chunk c is embedded by rank c modulo the number of ranks.
        skip_broken: give images that cannot be read the embedding 0, instead of an error.

    Raises:
        BrokenImageError: naming the file.
    """
    parts: dict[int, torch.Tensor] = {}
    for number, start in enumerate(range(0, len(table), chunk)):
        if number % context.world_size == context.rank:
            rows = list(range(start, min(start + chunk, len(table))))
            images_NHWC, readable_N = load_images(table, rows, image_size, skip_broken)
            part = encoder(torch.from_numpy(images_NHWC).to(context.device)).embedding_NE
            parts[start] = part * torch.from_numpy(readable_N).to(part)[:, None]
    width = max(context.gather(max((part.shape[1] for part in parts.values()), default=0)))
    embeddings_NE = torch.zeros(len(table), width, dtype=encoder.tower.dtype, device=context.device)
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


def class_centroids(embeddings_NE: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Mean embedding (C, E), float64, of every class; images with embedding 0 do not count."""
    sums_CE = np.zeros((int(labels_N.max()) + 1, embeddings_NE.shape[1]))
    np.add.at(sums_CE, labels_N, embeddings_NE.astype(np.float64))
    counts_C = np.bincount(labels_N, weights=embeddings_NE.any(axis=1), minlength=len(sums_CE))
    return sums_CE / np.maximum(counts_C, 1)[:, None]
