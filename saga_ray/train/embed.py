"""Embeds a whole split, shared among ranks in fixed chunks, so that the numbers do not depend on how many ranks there are."""

from __future__ import annotations

import numpy as np
import torch

from saga_ray.encoder.encoder import Encoder
from saga_ray.train.context import RunContext
from saga_ray.types import ImageTable


@torch.no_grad()
def embed_table(encoder: Encoder, table: ImageTable, image_size: int, chunk: int, context: RunContext) -> np.ndarray:
    """Embeddings (N, E), float32 or wider, of all images of a table, on every rank.

    Args:
        chunk: images at once; chunk c is embedded by rank c modulo the number of ranks.
    """
    starts = range(0, len(table), chunk)
    embeddings_NE: torch.Tensor | None = None
    mine = [start for number, start in enumerate(starts) if number % context.world_size == context.rank]
    parts = {}
    for start in mine:
        rows = range(start, min(start + chunk, len(table)))
        images_NHWC = torch.from_numpy(np.array(table.source.load(rows, image_size))).to(context.device)
        parts[start] = encoder(images_NHWC).embedding_NE
    width = max(context.gather(max((part.shape[1] for part in parts.values()), default=0)))
    embeddings_NE = torch.zeros(len(table), width, dtype=encoder.tower.dtype, device=context.device)
    for start, part in parts.items():
        embeddings_NE[start : start + len(part)] = part
    return context.all_reduce_sum([embeddings_NE])[0].cpu().numpy()


def class_centroids(embeddings_NE: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Mean embedding (C, E), float64, of every class."""
    sums_CE = np.zeros((int(labels_N.max()) + 1, embeddings_NE.shape[1]))
    np.add.at(sums_CE, labels_N, embeddings_NE.astype(np.float64))
    return sums_CE / np.bincount(labels_N, minlength=len(sums_CE))[:, None]
