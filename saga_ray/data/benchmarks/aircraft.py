"""FGVC-Aircraft 2013b (Maji et al., arXiv 1306.5151): 100 variants of 100 images, the first 50 train, the last 50 are queried.

Trainval and test are pooled. The order of the variants decides the halves: names are sorted by code points, capitals
before small letters, which is the order of the owner's `variants.txt` (`CRJ-900` stands before `Cessna 172`). Sorting without
regard to case would swap CRJ-700 and CRJ-900 with Cessna 560 and Challenger 600: the manifest fixes the order. The copyright
banner, the lowest 20 pixels of every picture, is cut off.
"""

from __future__ import annotations

from pathlib import Path

from saga_ray.config import DataConfig
from saga_ray.data.benchmarks.benchmark import benchmark_dataset
from saga_ray.data.benchmarks.layouts import AIRCRAFT, located
from saga_ray.data.benchmarks.manifests import manifest
from saga_ray.data.files.tree import Found, read_lines
from saga_ray.types import Dataset

BANNER_PIXELS = 20
_LISTS = ("images_variant_trainval.txt", "images_variant_test.txt")


def aircraft_dataset(data: DataConfig) -> Dataset:
    """Read the archive, its folder, its `data` folder or the parent; image ids are the owner's, leading zeros kept.

    Raises:
        ValueError: for a tree that is not FGVC-Aircraft's, is damaged, or has other counts (`data.verify_counts`).
    """
    given, root = located(data.root, "aircraft", AIRCRAFT.find)
    if root is None:
        raise ValueError(
            f"data.root: {given} is not FGVC-Aircraft (data/images/, data/images_variant_trainval.txt and data/images_variant_test.txt "
            f"were looked for); name its folder with --data-root DIR"
        )
    variant_of: dict[str, str] = {}
    for name in _LISTS:
        _add_variants(root / name, variant_of)
    images: dict[str, list[tuple[str, str]]] = {variant: [] for variant in sorted(set(variant_of.values()))}
    for image_id in sorted(variant_of):
        images[variant_of[image_id]].append((image_id, f"images/{image_id}.jpg"))
    return benchmark_dataset(Found("aircraft", root, images, cut_bottom=BANNER_PIXELS), manifest("aircraft"), data)


def _add_variants(path: Path, variant_of: dict[str, str]) -> None:
    """Lines of `id variant name`; ids are strings of digits, names may hold spaces and slashes."""
    for number, line in enumerate(read_lines(path), 1):
        image_id, _, variant = line.strip().partition(" ")
        variant = variant.strip()
        if not image_id.isdecimal() or not variant:
            raise ValueError(f"data.root: {path}, line {number}: '{line}' is not 'image variant'; the file is damaged")
        if variant_of.setdefault(image_id, variant) != variant:
            raise ValueError(
                f"data.root: {path}, line {number}: image {image_id} is '{variant}' here and '{variant_of[image_id]}' before; "
                f"the files do not belong together, unpack the archive again"
            )
