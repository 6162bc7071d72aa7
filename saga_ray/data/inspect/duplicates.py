"""Images that are one picture: equal files, and pictures that look alike although their files differ.

Alike is told by pHash (Zauner 2010): the 64 lowest frequencies of a 32 x 32 grey picture, a bit for each above their median.
Another size, another quality or a little noise changes a few bits, another picture about half of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DISTANCE = 4
"""Bits of 64 that near duplicates may differ in."""
FLAT = -1
"""In place of a hash: the picture has no structure that a hash could tell."""
_SIDE, _LOW = 32, 8
_MIN_CONTRAST = 2.0
"""Grey levels (standard deviation at 32 x 32) below which a picture is flat."""

_NONE = np.iinfo(np.int64).max
_SHIFT = 40
"""A distance and a position are one number, the distance above: its minimum is the nearest image, the lowest at ties."""

_angles = np.pi * (2 * np.arange(_SIDE) + 1)[None, :] * np.arange(_LOW)[:, None] / (2 * _SIDE)
_DCT = np.cos(_angles)
"""The first rows of the discrete cosine transform; factors do not matter where only the order of values counts."""


def perceptual_hash(image: Image) -> int:
    """pHash of a picture as a number of 64 bits, or `FLAT`."""
    from PIL import Image as PillowImage

    small = image.convert("L").resize((_SIDE, _SIDE), PillowImage.Resampling.BILINEAR)
    grey_HW = np.asarray(small, dtype=np.float64)
    if grey_HW.std() < _MIN_CONTRAST:
        return FLAT
    low = (_DCT @ grey_HW @ _DCT.T).ravel()
    return int(np.packbits(low > np.median(low)).view(">u8")[0])


def equal_files(digests: Sequence[bytes]) -> list[list[int]]:
    """Groups of two and more positions with one digest, in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        groups.setdefault(digest, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(
    hashes_N: Sequence[int], groups_N: np.ndarray, max_distance: int = MAX_DISTANCE
) -> list[tuple[int, int, int]]:
    """For every image that looks like one of another group its nearest such image: (position, position, bits that differ).

    Ties go to the lower position, a pair that is mutual is told once, the lower position first. Flat images are left out.
    Two hashes that differ in at most d bits agree in one of d + 1 bands; only images that share a band are compared, so
    that time grows with the images that are alike rather than with the square of all.

    Args:
        hashes_N: from `perceptual_hash`.
        groups_N: small non-negative integers, the split of each image.
    """
    told_N = np.array([value != FLAT for value in hashes_N], dtype=bool)
    rows_M = np.flatnonzero(told_N)
    if len(rows_M) == 0:
        return []
    hashes_M = np.array([hashes_N[row] for row in rows_M], dtype=np.uint64)
    groups_M = np.asarray(groups_N)[rows_M]
    unique_U, of_unique_M = np.unique(hashes_M, return_inverse=True)
    first_UG = np.full((len(unique_U), int(groups_M.max()) + 1), _NONE)
    np.minimum.at(first_UG, (of_unique_M, groups_M), rows_M)
    best_UG = np.full(first_UG.shape, _NONE)
    _offer(best_UG, first_UG, np.arange(len(unique_U)), np.arange(len(unique_U)), np.zeros(len(unique_U), np.int64))
    for left_P, right_P, distance_P in _close_pairs(unique_U, max_distance):
        _offer(best_UG, first_UG, left_P, right_P, distance_P)
        _offer(best_UG, first_UG, right_P, left_P, distance_P)
    found = []
    for row, value in zip(rows_M.tolist(), best_UG[of_unique_M, groups_M].tolist(), strict=True):
        if value != _NONE:
            found.append((row, value & ((1 << _SHIFT) - 1), value >> _SHIFT))
    pairs = {(a, b) for a, b, _ in found}
    return [(a, b, distance) for a, b, distance in found if a < b or (b, a) not in pairs]


def _offer(
    best_UG: np.ndarray, first_UG: np.ndarray, of_P: np.ndarray, others_P: np.ndarray, distance_P: np.ndarray
) -> None:
    """Let every (hash, group) know the first images of other groups that have another hash: nearest, then lowest, wins."""
    for group in range(first_UG.shape[1]):
        for other in range(first_UG.shape[1]):
            there_P = first_UG[others_P, other] != _NONE
            if group != other and there_P.any():
                value_P = (distance_P[there_P] << _SHIFT) | first_UG[others_P[there_P], other]
                np.minimum.at(best_UG[:, group], of_P[there_P], value_P)


def _close_pairs(unique_U: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of different hashes within a distance; a pair may come several times."""
    bounds = np.linspace(0, 64, max_distance + 2).round().astype(int)
    for low, high in pairwise(bounds):
        band_U = (unique_U >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order_U = np.argsort(band_U, kind="stable")
        sorted_U = band_U[order_U]
        ends_U = np.searchsorted(sorted_U, sorted_U, side="right")
        alive = np.arange(len(unique_U))
        step = 0
        while True:
            step += 1
            alive = alive[alive + step < ends_U[alive]]
            if len(alive) == 0:
                break
            left_P, right_P = order_U[alive], order_U[alive + step]
            distance_P = np.bitwise_count(unique_U[left_P] ^ unique_U[right_P]).astype(np.int64)
            close_P = distance_P <= max_distance
            if close_P.any():
                yield left_P[close_P], right_P[close_P], distance_P[close_P]
