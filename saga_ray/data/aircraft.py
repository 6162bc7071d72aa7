"""FGVC-Aircraft 2013b (Maji et al., arXiv 1306.5151): 100 variants of 100 images, the first 50 train, the last 50 are queried.

Trainval and test are pooled. The order of the variants decides the halves: names are sorted by code points, capitals
before small letters, which is the order of the owner's `variants.txt` (`CRJ-900` stands before `Cessna 172`). Sorting without
regard to case would swap CRJ-700 and CRJ-900 with Cessna 560 and Challenger 600. The copyright banner, the lowest 20
pixels of every picture, is cut off.
"""

from __future__ import annotations

from pathlib import Path

from saga_ray.config import DataConfig
from saga_ray.data.tree import Found, Published, benchmark_dataset, first_with, read_lines, root_folder
from saga_ray.types import Dataset

PUBLISHED = Published(50, 5_000, 50, 5_000)
NUM_TRAIN_CLASSES = 50
BANNER_PIXELS = 20
_MARKS = ("images", "images_variant_trainval.txt", "images_variant_test.txt")


def aircraft_dataset(data: DataConfig) -> Dataset:
    """Read the archive's folder, its `data` folder or the parent; image ids are the owner's, leading zeros kept.

    Raises:
        ValueError: for a tree that is not FGVC-Aircraft's, is damaged, or has other counts (`data.verify_counts`).
    """
    given = root_folder(data.root)
    root = first_with(given, ("data", "fgvc-aircraft-2013b/data"), *_MARKS)
    if root is None:
        raise ValueError(
            f"data.root: {given} is not FGVC-Aircraft (data/images/, data/images_variant_trainval.txt and data/images_variant_test.txt "
            f"were looked for); name its folder with --data-root DIR"
        )
    variant_of: dict[str, str] = {}
    for name in _MARKS[1:]:
        variant_of |= _variants(root / name)
    images: dict[str, list[tuple[str, str]]] = {variant: [] for variant in sorted(set(variant_of.values()))}
    for image_id in sorted(variant_of):
        images[variant_of[image_id]].append((image_id, f"images/{image_id}.jpg"))
    # The owner's list of all variants, where it lies beside the images, keeps the halves of an incomplete copy as published.
    listed = root / "variants.txt"
    order = sorted({line.strip() for line in read_lines(listed)} | set(images)) if listed.exists() else list(images)
    trains = frozenset(order[:NUM_TRAIN_CLASSES])
    return benchmark_dataset(Found("aircraft", root, images, trains, cut_bottom=BANNER_PIXELS), PUBLISHED, data)


def _variants(path: Path) -> dict[str, str]:
    """Lines of `id variant name`; ids are strings of digits, names may hold spaces and slashes."""
    out = {}
    for number, line in enumerate(read_lines(path), 1):
        image_id, _, variant = line.strip().partition(" ")
        if not image_id.isdigit() or not variant.strip():
            raise ValueError(f"data.root: {path}, line {number}: '{line}' is not 'image variant'; the file is damaged")
        out[image_id] = variant.strip()
    return out
