"""The four benchmarks: the owner's counts, the published halves, and what becomes of trees that differ."""

from __future__ import annotations

import logging
from dataclasses import replace

from saga_ray.config import DataConfig
from saga_ray.data.benchmarks.manifests import Manifest, described, differences
from saga_ray.data.files.tree import Found, check_classes, list_folder, split_dataset
from saga_ray.data.splits import first_half
from saga_ray.types import Dataset

logger = logging.getLogger(__name__)


def existing(found: Found, verify_counts: bool) -> Found:
    """Drop listed images that are not on disk, and classes without any.

    Raises:
        ValueError: if images are missing and `verify_counts` asks for a complete tree, one is listed twice, or a path leads
            out of the root.
    """
    _check_listed_once(found)
    on_disk: dict[str, set[str]] = {}

    def is_there(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise ValueError(
                f"data.root: {found.name}: the listed image {path!r} leads out of {found.root}; the listing is not the owner's"
            )
        if folder not in on_disk:
            full = found.root / folder
            on_disk[folder] = {entry.name for entry in list_folder(full)} if full.is_dir() else set()
        return name in on_disk[folder]

    missing: list[str] = []
    kept: dict[str, list[tuple[str, str]]] = {}
    for label, images in found.images_of_class.items():
        present = [(image_id, path) for image_id, path in images if is_there(path)]
        missing += [path for _, path in images if not is_there(path)]
        if present:
            kept[label] = present
    if missing and verify_counts:
        raise ValueError(
            f"data.root: {found.name}: {len(missing):,} listed images are not in {found.root}, the first is {missing[0]}; "
            f"complete the copy, or go on without them with --set data.verify_counts=false (rows are then marked partial)"
        )
    if missing:
        logger.warning("%s: %d listed images are not in %s and are left out", found.name, len(missing), found.root)
    return replace(found, images_of_class=kept)


def _check_listed_once(found: Found) -> None:
    home: dict[str, str] = {}
    for label, images in found.images_of_class.items():
        for image_id, _ in images:
            if image_id in home:
                raise ValueError(
                    f"data.root: {found.name}: image {image_id} is listed twice, under '{home[image_id]}' and '{label}'; an image "
                    f"of two classes would be training and test data at once: correct the list in {found.root}"
                )
            home[image_id] = label


def benchmark_dataset(found: Found, split: Manifest, data: DataConfig) -> Dataset:
    """Split a benchmark as its manifest says.

    With `data.verify_counts=false` other counts are accepted and the data set is marked partial. Classes that the manifest
    does not know are then split by the rule, the first half of their order trains; where fewer than two classes would train
    or be queried, all classes are split by it. Validation classes are the manifest's in a complete tree at its
    `validation_share`, else carved from the training classes by `carve_validation`, which gives the same.

    Raises:
        ValueError: for other counts than the owner's, or too few classes or images to split.
    """
    found = existing(found, data.verify_counts)
    train, test, unknown = _halves(found, split)
    sizes = {label: len(images) for label, images in found.images_of_class.items()}
    counts = described(len(train), sum(map(sizes.get, train)), len(test), sum(map(sizes.get, test)))
    differing = differences(split, {found.class_id(label): size for label, size in sizes.items()})
    if differing and data.verify_counts:
        raise ValueError(
            f"data.root: {found.name}: {found.root} holds {counts}, but published are {split} ({'; '.join(differing)}); complete the "
            f"copy, or go on with what is there with --set data.verify_counts=false (rows are then marked partial)"
        )
    check_classes(found)
    if differing:
        logger.warning("%s: %s instead of %s; results are marked partial", found.name, counts, split)
    if len(train) < 2 or len(test) < 2:
        labels = list(sizes)
        train, test, unknown = labels[: first_half(len(labels))], labels[first_half(len(labels)) :], labels
    if unknown:
        by_rule = (", ".join(label for label in half if label in set(unknown)) or "none" for half in (train, test))
        logger.warning("%s: classes split by their order: %s train; %s are queried", found.name, *by_rule)
    validation = None
    if not differing and data.validation_share == split.validation_share:
        validation = [label for label in train if found.class_id(label) in set(split.validation)]
        train = [label for label in train if label not in set(validation)]
    return split_dataset(found, train, validation, test, data, partial=bool(differing))


def _halves(found: Found, split: Manifest) -> tuple[list[str], list[str], list[str]]:
    """Classes that train, classes that are queried, and those of both that the manifest does not know."""
    unknown = [label for label in found.images_of_class if split.split_of(found.class_id(label)) is None]
    half_of = {label: "train" if place < first_half(len(unknown)) else "test" for place, label in enumerate(unknown)}
    half_of |= {label: split.split_of(found.class_id(label)) or half_of[label] for label in found.images_of_class}
    train, test = ([label for label in found.images_of_class if half_of[label] == half] for half in ("train", "test"))
    return train, test, unknown
