"""From files found on disk to a `Dataset`: checks of the root, the published counts, the splits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.data.fingerprint import dataset_fingerprint
from saga_ray.data.images import EXTENSIONS, FolderSource
from saga_ray.data.splits import carve_validation, first_half
from saga_ray.types import Dataset, ImageTable

logger = logging.getLogger(__name__)

MIN_CLASSES = 4
"""Two to train on and two to query: fewer cannot be split."""


@dataclass(frozen=True)
class Found:
    """What a reader found on disk.

    Example: `Found("cub", Path("/data/CUB_200_2011"), {"001.Owl": [("001.Owl/a.jpg", "images/001.Owl/a.jpg")]}, ("001.Owl",))`.
    """

    name: str
    root: Path
    images_of_class: Mapping[str, Sequence[tuple[str, str]]]
    """Class to (image id, path under root), classes in the order that decides the halves."""
    trains: frozenset[str]
    """Classes of the published training half."""
    cut_bottom: int = 0


@dataclass(frozen=True)
class Published:
    """Counts that the owner of a data set, or the literature's split of it, gives."""

    num_train_classes: int
    num_train_images: int
    num_test_classes: int
    num_test_images: int

    def __str__(self) -> str:
        return (
            f"{self.num_train_classes:,} training classes with {self.num_train_images:,} images "
            f"and {self.num_test_classes:,} test classes with {self.num_test_images:,}"
        )


def root_folder(root: str | None) -> Path:
    """The data folder as an absolute path.

    Raises:
        ValueError: if there is none, it is a file, or it cannot be listed.
    """
    if root is None:
        raise ValueError("data.root: missing; say where the images are with --data-root DIR")
    if "://" in root:
        raise ValueError(
            f"data.root: {root} is not a local folder; copy it here and name the copy with --data-root DIR"
        )
    path = Path(root).expanduser()
    if not path.exists():
        raise ValueError(f"data.root: {root} does not exist; name the folder of the images with --data-root DIR")
    if not path.is_dir():
        raise ValueError(
            f"data.root: {root} is a file, not a folder; unpack it and name the folder with --data-root DIR"
        )
    if not list_folder(path):
        raise ValueError(f"data.root: {root} is empty; name the folder of the images with --data-root DIR")
    return path.resolve()


def list_folder(path: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder without hidden ones, sorted by name (code points, as Python sorts).

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"data.root: {path} cannot be listed ({error.strerror}); make it readable or name another folder with --data-root DIR"
        ) from None


def image_files(path: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted; a file's ending decides."""
    return [entry.name for entry in list_folder(path) if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank.

    Raises:
        ValueError: naming the file, if it is missing or not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"data.root: {path} cannot be read ({reason}); the folder is not complete") from None
    return [line for line in lines if line.strip()]


def numbered_lines(path: Path) -> dict[int, str]:
    """A file of `number text` lines, as CUB's are.

    Raises:
        ValueError: naming file and line.
    """
    out = {}
    for line_number, line in enumerate(read_lines(path), 1):
        number, _, text = line.strip().partition(" ")
        if not number.isdigit() or not text:
            raise ValueError(
                f"data.root: {path}, line {line_number}: '{line}' is not 'number text'; the file is damaged"
            )
        out[int(number)] = text.strip()
    return out


def first_with(root: Path, candidates: Iterable[str], *marks: str) -> Path | None:
    """The first of root and root/candidate that holds all of `marks`: an archive's folder or its parent."""
    for folder in (root, *(root / candidate for candidate in candidates)):
        if all((folder / mark).exists() for mark in marks):
            return folder
    return None


def existing(found: Found, verify_counts: bool) -> Found:
    """Drop listed images that are not on disk, and classes without any.

    Raises:
        ValueError: if images are missing and `verify_counts` asks for a complete tree, or a path leads out of the root.
    """
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
    return Found(found.name, found.root, kept, found.trains, found.cut_bottom)


def benchmark_dataset(found: Found, published: Published, data: DataConfig) -> Dataset:
    """Split a benchmark as published, validation classes carved from the training classes (`carve_validation`).

    With `data.verify_counts=false` other counts are accepted and the data set is marked partial; where fewer than two
    classes would train or be queried, the classes found are split anew, the first half of their order trains.

    Raises:
        ValueError: for other counts than published, or too few classes or images to split.
    """
    found = existing(found, data.verify_counts)
    sizes = {label: len(images) for label, images in found.images_of_class.items()}
    train = [label for label in sizes if label in found.trains]
    test = [label for label in sizes if label not in found.trains]
    counts = Published(len(train), sum(map(sizes.get, train)), len(test), sum(map(sizes.get, test)))
    partial = counts != published
    if partial and data.verify_counts:
        raise ValueError(
            f"data.root: {found.name}: {found.root} holds {counts}, but published are {published}; complete the copy, or go on "
            f"with what is there with --set data.verify_counts=false (rows are then marked partial)"
        )
    if partial:
        logger.warning("%s: %s instead of %s; results are marked partial", found.name, counts, published)
    check_classes(found)
    if len(train) < 2 or len(test) < 2:
        labels = list(sizes)
        train, test = labels[: first_half(len(labels))], labels[first_half(len(labels)) :]
        logger.warning("%s: split anew, the first half of the classes trains: %s", found.name, ", ".join(train))
    return split_dataset(found, train, None, test, data, partial)


def check_classes(found: Found) -> None:
    """Refuse trees that cannot be split or whose classes cannot form pairs.

    Raises:
        ValueError: naming the classes.
    """
    num_classes = len(found.images_of_class)
    if num_classes < MIN_CLASSES:
        raise ValueError(
            f"data.root: {found.root} has {num_classes} class(es) with images, at least {MIN_CLASSES} are needed "
            f"(half of them train, half are queried); name another folder with --data-root DIR"
        )
    single = [label for label, images in found.images_of_class.items() if len(images) < 2]
    if single:
        shown = ", ".join(f"'{label}'" for label in single[:5]) + (", ..." if len(single) > 5 else "")
        raise ValueError(
            f"data.root: {found.root}: {len(single)} class(es) have a single image ({shown}), and a pair of one class needs two; "
            f"add images to them or remove them"
        )


def split_dataset(
    found: Found,
    train: Sequence[str],
    validation: Sequence[str] | None,
    test: Sequence[str],
    data: DataConfig,
    partial: bool,
) -> Dataset:
    """Make the three tables; validation classes are carved from the training classes where none are given."""
    if validation is None:
        kept, held = carve_validation(len(train), data.validation_share)
        train, validation = [train[i] for i in kept], [train[i] for i in held]
    tables = {"train": _table(found, train), "validation": _table(found, validation), "test": _table(found, test)}
    fingerprint = dataset_fingerprint(tables, data.image_size)
    return Dataset(found.name, **tables, fingerprint=fingerprint, partial=partial)


def _table(found: Found, labels: Sequence[str]) -> ImageTable:
    images = [image for label in labels for image in found.images_of_class[label]]
    sizes = [len(found.images_of_class[label]) for label in labels]
    return ImageTable(
        image_ids=tuple(image_id for image_id, _ in images),
        labels_N=np.repeat(np.arange(len(labels), dtype=np.int64), sizes),
        class_names=tuple(labels),
        source=FolderSource(tuple(path for _, path in images), root=str(found.root), cut_bottom=found.cut_bottom),
    )
