"""Confusable classes: groups of neighbours for the plan's hard shards, from embeddings.

A group is the first class that is still free, in the round's order, and the free classes nearest to it. Neighbours are
compared on whole numbers, so that machines with other vector units, other thread counts and other ranks choose alike.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

EXACT_CLASSES = 20_000
"""Up to so many classes every free class is looked at; beyond it only those in the nearest lists of an index."""
_BLOCK_BYTES = 64 * 2**20
_FINE, _COARSE = 2.0**20, 2.0**11
_LISTS_LOOKED_AT = 32


class ClassNeighbours(Protocol):
    """Which classes are easily taken for one another."""

    def groups(self, order: np.ndarray, num_groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Take `num_groups` groups of `width` classes from `order`, one after the other.

        Args:
            order: free classes, at least num_groups * width; the first free one begins the next group.

        Returns:
            (num_groups, width) classes, nearest first, and those of `order` that are left, in order.
        """
        ...


def snapshot_rows(labels_N: np.ndarray, images_per_class: int | None, seed: int) -> np.ndarray:
    """Rows of the training table that are embedded for a snapshot, in order: all, or so many of every class, drawn."""
    if images_per_class is None:
        return np.arange(len(labels_N))
    drawn_N = np.random.default_rng([seed, 0]).permutation(len(labels_N))
    drawn_N = drawn_N[np.argsort(labels_N[drawn_N], kind="stable")]
    counts_C = np.bincount(labels_N)
    place_N = np.arange(len(labels_N)) - np.repeat(np.cumsum(counts_C) - counts_C, counts_C)
    return np.sort(drawn_N[place_N < images_per_class])


def neighbours_from(class_centroids_CE: np.ndarray) -> ClassNeighbours:
    """Neighbours by the cosine of class centroids: exact up to `EXACT_CLASSES` classes, else through an index."""
    exact = len(class_centroids_CE) <= EXACT_CLASSES
    return CentroidNeighbours(class_centroids_CE) if exact else IndexedNeighbours(class_centroids_CE)


def _on_grid(centroids_CE: np.ndarray, steps: float, dtype: type) -> np.ndarray:
    """Unit vectors as whole numbers of 1 / steps, made in blocks."""
    assert np.isfinite(centroids_CE).all()
    grid_CE = np.empty(centroids_CE.shape, dtype)
    rows = max(1, _BLOCK_BYTES // (8 * centroids_CE.shape[1]))
    for start in range(0, len(grid_CE), rows):
        block_BE = centroids_CE[start : start + rows].astype(np.float64)
        norms_B1 = np.linalg.norm(block_BE, axis=1, keepdims=True)
        grid_CE[start : start + rows] = np.rint(block_BE / np.maximum(norms_B1, 1e-12) * steps)
    return grid_CE


class CentroidNeighbours:
    """Exact neighbours, by products of all classes with a block of those that may begin a group.

    Example: 4,096-wide centroids of 11,318 classes: a round of 707 micro-batches is drawn with 1.6e11 operations.
    """

    def __init__(self, class_centroids_CE: np.ndarray) -> None:
        """Take (C, E) mean embeddings of finite values."""
        # Inner products stay below 2^41: exact in float64 in any order of summation.
        self._grid_CE = _on_grid(class_centroids_CE, _FINE, np.float64)

    def groups(self, order: np.ndarray, num_groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """See `ClassNeighbours`; equally near classes are taken in their order."""
        groups_GW = np.empty((num_groups, width), dtype=np.int64)
        done = 0
        while done < num_groups:
            free = np.ones(len(order), dtype=bool)
            # Some of them will be taken as neighbours before their turn: computed in vain, and not many.
            block = max(1, min(num_groups - done, _BLOCK_BYTES // (8 * len(self._grid_CE))))
            distances_BC = -(self._grid_CE[order[:block]] @ self._grid_CE.T)
            for place, distances_C in enumerate(distances_BC):
                if done == num_groups or not free[place]:
                    continue
                free[place] = False
                nearest = _smallest(np.where(free, distances_C[order], np.inf), width - 1)
                free[nearest] = False
                groups_GW[done] = order[np.concatenate(([place], nearest))]
                done += 1
            order = order[free]
        return groups_GW, order


class IndexedNeighbours:
    """Neighbours for very many classes: an inverted index (faiss) finds candidates, whole numbers put them in order.

    Lists gather around classes that were drawn, so that nothing is trained whose result depends on the machine, and
    all products are whole numbers below 2^24, which float32 adds without rounding. Memory: the centroids once, in float32.
    """

    def __init__(self, class_centroids_CE: np.ndarray) -> None:
        """Index (C, E) mean embeddings of finite values; cosines are rounded to about 2e-4."""
        import faiss

        grid_CE = _on_grid(class_centroids_CE, _COARSE, np.float32)
        self._num_lists = max(1, min(len(grid_CE) // 8, round(4 * math.sqrt(len(grid_CE)))))
        heads = np.random.default_rng(0).choice(len(grid_CE), self._num_lists, replace=False)
        self._lists = faiss.IndexFlatIP(grid_CE.shape[1])
        self._lists.add(grid_CE[heads])
        index = faiss.IndexIVFFlat(self._lists, grid_CE.shape[1], self._num_lists, faiss.METRIC_INNER_PRODUCT)
        index.train(grid_CE[heads])
        rows = max(1, _BLOCK_BYTES // (4 * grid_CE.shape[1]))
        for start in range(0, len(grid_CE), rows):
            index.add(grid_CE[start : start + rows])
        index.make_direct_map()
        self._index = index
        self._num_classes = len(grid_CE)

    def __getstate__(self) -> dict:
        raise TypeError("an index is not copied between processes; copy the centroids")

    def groups(self, order: np.ndarray, num_groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """See `ClassNeighbours`; what lies in no near list is missed, and free classes that come first fill the group."""
        groups_GW = np.empty((num_groups, width), dtype=np.int64)
        free_C = np.zeros(self._num_classes, dtype=bool)
        free_C[order] = True
        place_C = np.zeros(self._num_classes, dtype=np.int64)
        place_C[order] = np.arange(len(order))
        done = first = 0
        while done < num_groups:
            heads, first = self._next_free(order, first, free_C, min(512, num_groups - done))
            for head, found in zip(heads, self._candidates(heads, free_C, 8 * width + 8), strict=True):
                if not free_C[head] or done == num_groups:
                    continue
                free_C[head] = False
                labels, scores = found
                usable = free_C[labels]
                labels, scores = labels[usable], scores[usable]
                mates = labels[np.lexsort((place_C[labels], -scores))][: width - 1]
                free_C[mates] = False
                if len(mates) < width - 1:
                    filling, _ = self._next_free(order, first, free_C, width - 1 - len(mates))
                    free_C[filling] = False
                    mates = np.concatenate((mates, filling))
                groups_GW[done] = np.concatenate(([head], mates))
                done += 1
        return groups_GW, order[free_C[order]]

    @staticmethod
    def _next_free(order: np.ndarray, first: int, free_C: np.ndarray, num: int) -> tuple[np.ndarray, int]:
        """The next `num` free classes from place `first` on, and the place of the first of them."""
        found: list[np.ndarray] = []
        place, missing = first, num
        while missing and place < len(order):
            window = order[place : place + 4 * num + 64]
            hits = window[free_C[window]][:missing]
            if not found and len(hits):
                first = place + int(np.flatnonzero(free_C[window])[0])
            found += [hits] if len(hits) else []
            missing -= len(hits)
            place += len(window)
        return np.concatenate(found), first

    def _candidates(self, heads: np.ndarray, free_C: np.ndarray, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Classes near each head, with their inner products; only free ones."""
        import faiss

        chosen = faiss.IDSelectorBitmap(np.packbits(free_C, bitorder="little"))
        looked_at = min(self._num_lists, _LISTS_LOOKED_AT)
        parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=looked_at)
        queries_BE = np.stack([self._index.reconstruct(int(head)) for head in heads])
        scores_BK, labels_BK = self._index.search(queries_BE, num, params=parameters)
        out = []
        for head, scores, labels in zip(heads, scores_BK, labels_BK, strict=True):
            # Of classes that tie with the last one found, which is returned may depend on the build.
            kept = (labels >= 0) & (labels != head) & ((scores > scores[-1]) | (labels[-1] < 0))
            out.append((labels[kept], scores[kept]))
        return out


def _smallest(values: np.ndarray, num: int) -> np.ndarray:
    """Places of the `num` smallest values in order; equal ones by place: the start of a stable argsort, sooner."""
    last = np.partition(values, num - 1)[num - 1]
    candidates = np.flatnonzero(values <= last)
    return candidates[np.argsort(values[candidates], kind="stable")][:num]
