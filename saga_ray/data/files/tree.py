"""From files found on disk to a `Dataset`: where the tree lies, how its lists are read, the three tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.data.files.archives import ENDINGS, is_archive, unpacked
from saga_ray.data.files.fingerprint import dataset_fingerprint
from saga_ray.data.files.sources import FolderSource
from saga_ray.data.pixels.images import EXTENSIONS
from saga_ray.data.splits import carve_validation
from saga_ray.types import Dataset, ImageTable

MIN_CLASSES = 4
"""Two to train on and two to query: fewer cannot be split."""


@dataclass(frozen=True)
class Truth:
    """Attributes of images, for evaluation only; not part of the fingerprint, since no number of a result comes from them."""

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    """Words of each attribute's values."""
    of_image: Mapping[str, np.ndarray]
    """Image id to one int64 value per attribute, -1 where it is not known."""


@dataclass(frozen=True)
class Found:
    """What a reader found on disk.

    Example: `Found("cub", Path("/data/CUB_200_2011"), {"001.Owl": [("001.Owl/a.jpg", "images/001.Owl/a.jpg")]})`.
    """

    name: str
    root: Path
    images_of_class: Mapping[str, Sequence[tuple[str, str]]]
    """Class to (image id, path under root), classes in the order that decides the halves."""
    class_ids: Mapping[str, str] = field(default_factory=dict)
    """Class to its id in the manifest, where that is not the class's name."""
    cut_bottom: int = 0
    truth: Truth | None = None

    def class_id(self, label: str) -> str:
        """What the manifest calls a class."""
        return self.class_ids.get(label, label)


def root_folder(root: str | None) -> Path:
    """The data folder as an absolute path; an archive is unpacked (`saga_ray.data.files.archives`).

    Raises:
        ValueError: if there is none, it is another file, or it cannot be listed.
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
    if is_archive(path):
        return unpacked([path.resolve()])
    if not path.is_dir():
        raise ValueError(
            f"data.root: {root} is a file, not a folder and no archive ({', '.join(ENDINGS)}); unpack it and name the folder with "
            f"--data-root DIR"
        )
    if not list_folder(path):
        raise ValueError(f"data.root: {root} is empty; name the folder of the images with --data-root DIR")
    return path.resolve()


def is_hidden(name: str) -> bool:
    """True for what belongs to a system and not to a data set: `.DS_Store`, `._1.jpg`, and `__MACOSX` in zips of macOS."""
    return name.startswith(".") or name == "__MACOSX"


def list_folder(path: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder without hidden ones and what macOS adds to its zips, sorted by name (code points, as Python sorts).

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if not is_hidden(e.name)), key=lambda entry: entry.name)
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
        if not number.isdecimal() or not text:
            raise ValueError(
                f"data.root: {path}, line {line_number}: '{line}' is not 'number text'; the file is damaged"
            )
        if out.setdefault(int(number), text.strip()) != text.strip():
            raise ValueError(
                f"data.root: {path}, line {line_number}: number {int(number)} stands twice, as '{out[int(number)]}' and "
                f"'{text.strip()}'; the file is damaged"
            )
    return out


def check_unique(labels: Iterable[str], path: Path) -> None:
    """Refuse a list of classes that names one twice: their images would be thrown together.

    Raises:
        ValueError: naming file and class.
    """
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise ValueError(f"data.root: {path} names the class '{label}' twice; the file is not the owner's")
        seen.add(label)


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
    truth = found.truth or Truth((), (), {})
    return Dataset(
        found.name,
        **tables,
        fingerprint=fingerprint,
        partial=partial,
        attribute_names=truth.names,
        attribute_values=truth.values,
    )


def _table(found: Found, labels: Sequence[str]) -> ImageTable:
    images = [image for label in labels for image in found.images_of_class[label]]
    sizes = [len(found.images_of_class[label]) for label in labels]
    truth_NA = None
    if found.truth is not None:
        truth_NA = np.full((len(images), len(found.truth.names)), -1, dtype=np.int64)
        for row, (image_id, _) in enumerate(images):
            truth_NA[row] = found.truth.of_image.get(image_id, -1)
    return ImageTable(
        image_ids=tuple(image_id for image_id, _ in images),
        labels_N=np.repeat(np.arange(len(labels), dtype=np.int64), sizes),
        class_names=tuple(labels),
        source=FolderSource(tuple(path for _, path in images), root=str(found.root), cut_bottom=found.cut_bottom),
        truth_NA=truth_NA,
    )
