"""Any Parquet files with a column of image bytes and a column of classes, for instance a data set of the Hugging Face hub.

Read are `DIR/*.parquet`, `DIR/data/*.parquet` or one file. The image column is binary, or a struct with a field `bytes`; the class column
holds words or numbers, whose names are taken from the `huggingface` metadata where they are there. A column is found by its
usual names or by being the only one of its kind. Splits of the files are kept where they share no class (a column `split`, or
files named train..., validation..., test...); else all images are pooled and split by class, as folders are.

Whole row groups are read, the last ones are kept; `saga-ray data prepare` writes files of which single images are read.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.data.files.columns import Columns, check_same, columns_of, split_word
from saga_ray.data.files.fingerprint import Listed, dataset_fingerprint
from saga_ray.data.files.places import Place, absolute, without_password
from saga_ray.data.files.row_groups import ParquetSource, forget, image_bytes, opened, read_group
from saga_ray.data.files.tree import Found, check_classes
from saga_ray.data.pixels.images import EXTENSIONS
from saga_ray.data.splits import SPLIT_WORDS, SPLITS, carve_validation, first_half
from saga_ray.types import Dataset, ImageTable

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

LARGE_GROUP_BYTES = 16 * 2**20


def parquet_files(root: str) -> tuple[str, list[str]]:
    """The folder and its Parquet files: those of `root`, or of its sub-folder `data`, or `root` itself; none if there are none."""
    folder, slash, name = root.rpartition("/")
    if name.lower().endswith(".parquet"):
        folder = folder + slash or "."
        if Place.open(folder).has(name):
            return folder, [name]
    place = Place.open(root)
    for prefix in ("", "data/"):
        inner = Place(place.filesystem, f"{place.path}/{prefix}".rstrip("/"), place.shown)
        if place.is_local and not Path(inner.path).is_dir():
            continue
        files = [f"{prefix}{name}" for name in inner.list() if name.lower().endswith(".parquet")]
        if files:
            return root, files
    return root, []


def holds_parquet(root: str | None) -> bool:
    """True for a Parquet file or a folder of them; folders with images beside them are what counts, if there are any."""
    return root is not None and bool(parquet_files(root)[1]) and not _holds_image_folders(root)


def _holds_image_folders(root: str) -> bool:
    if not Place.open(root).is_local:
        return False
    folder = Path(root).expanduser()
    inside = itertools.chain(folder.glob("*/*"), folder.glob("*/*/*"))
    return any(path.name.lower().endswith(EXTENSIONS) for path in itertools.islice(inside, 10_000))


@dataclass
class _Image:
    label: Any
    split: str | None
    image_id: str
    place: tuple[int, int, int]
    length: int
    sha256: bytes


def parquet_dataset(data: DataConfig) -> Dataset:
    """Read a Parquet file or a folder of them (module's head); every image's bytes are read once, for the fingerprint.

    Raises:
        ValueError: for files that cannot be read, columns that are missing or could be several, a split column with
            unknown words or none in some rows, and classes that are too few
            or too small to be split.
    """
    assert data.root is not None
    forget()
    root, files = parquet_files(data.root)
    root = absolute(root)
    columns = columns_of(opened(root, files[0]).schema_arrow, f"{without_password(root)}/{files[0]}")
    images = list(_images(root, files, columns))
    _check_any_image(images, root)
    if columns.split:
        _check_split_column(images, root)
    _advise(images, root)
    of_class: dict[str, list[_Image]] = {}
    for image in sorted(images, key=lambda image: image.label):
        of_class.setdefault(_class_name(image.label, columns, root), []).append(image)
    ids = {label: [(image.image_id, "") for image in found] for label, found in of_class.items()}
    check_classes(Found("folder", Path(root), ids))
    listed, tables = {}, {}
    for split, labels in _split(of_class, data).items():
        listed[split], tables[split] = _table(root, files, columns, {name: of_class[name] for name in labels})
    return Dataset("folder", **tables, fingerprint=dataset_fingerprint(listed, data.image_size))


def _images(root: str, files: list[str], columns: Columns) -> Iterator[_Image]:
    unlabelled = 0
    for number, file in enumerate(files):
        parquet = opened(root, file)
        where = f"{without_password(root)}/{file}"
        check_same(parquet.schema_arrow, columns, opened(root, files[0]).schema_arrow, where, files[0])
        of_file = next((s for word, s in SPLIT_WORDS.items() if _stem(file).startswith((f"{word}-", f"{word}."))), None)
        for group in range(parquet.num_row_groups):
            table = read_group(root, file, group, columns.wanted)
            contents = image_bytes(table[columns.image])
            labels = table[columns.label].to_pylist()
            splits = table[columns.split].to_pylist() if columns.split else [of_file] * len(labels)
            ids = _ids(table, columns, file, group)
            for row, (content, label) in enumerate(zip(contents, labels, strict=True)):
                if label is None or label == -1:  # the hub's mark of a test image without class
                    unlabelled += 1
                    continue
                split = split_word(splits[row], where)
                digest = hashlib.sha256(content).digest()
                yield _Image(label, split, ids[row], (number, group, row), len(content), digest)
    if unlabelled:
        logger.warning("%s: %d images without a class are left out", without_password(root), unlabelled)


def _stem(file: str) -> str:
    return file.rpartition("/")[2].lower()


def _ids(table: pa.Table, columns: Columns, file: str, group: int) -> list[str]:
    """Names from the id column or the struct's path, with the file and row where they are missing."""
    import pyarrow as pa

    names: list[Any] = [None] * len(table)
    if columns.image_id is not None:
        names = table[columns.image_id].to_pylist()
    elif pa.types.is_struct(kind := table[columns.image].type) and any(field.name == "path" for field in kind):
        names = table[columns.image].combine_chunks().field("path").to_pylist()
    # The hub's paths are file names, and equal ones are common: the row makes them unique.
    return [f"{file}/{group}/{row}" + (f"/{name}" if name is not None else "") for row, name in enumerate(names)]


def _check_any_image(images: list[_Image], root: str) -> None:
    if not images:
        raise ValueError(
            f"data.root: {without_password(root)}: the Parquet files hold no image with a class; name another folder"
        )
    if not any(image.length for image in images):
        raise ValueError(
            f"data.root: {without_password(root)}: the Parquet files hold no image bytes, only paths; write them anew with the images embedded"
        )


def _check_split_column(images: list[_Image], root: str) -> None:
    named = sum(image.split is not None for image in images)
    if 0 < named < len(images):
        raise ValueError(
            f"data.root: {without_password(root)}: {len(images) - named:,} of {len(images):,} images have no word in the split column; "
            f"fill it in all rows, or remove the column"
        )


def _advise(images: list[_Image], root: str) -> None:
    """Say what large row groups cost: one of them is read for every image that is not in memory."""
    num_bytes: Counter[tuple[int, int]] = Counter()
    for image in images:
        num_bytes[image.place[:2]] += image.length
    if max(num_bytes.values()) > LARGE_GROUP_BYTES:
        logger.warning(
            "%s: row groups of up to %d MB are read whole for single images; `saga-ray data prepare` writes files of which each image is read alone",
            without_password(root),
            max(num_bytes.values()) >> 20,
        )


def _class_name(label: Any, columns: Columns, root: str) -> str:
    if columns.class_names is None or isinstance(label, str):
        return str(label)
    if not 0 <= label < len(columns.class_names):
        raise ValueError(
            f"data.root: {without_password(root)}: class {label}, but the files name {len(columns.class_names)} classes; they are damaged"
        )
    return columns.class_names[label]


def _split(of_class: dict[str, list[_Image]], data: DataConfig) -> dict[str, list[str]]:
    """Classes of each split: as the files say where no class is in two of them, else the first half trains."""
    splits_of = {label: {image.split for image in images} for label, images in of_class.items()}
    given: dict[str, list[str]] = {name: [n for n, s in splits_of.items() if s == {name}] for name in SPLITS}
    if all(len(found) == 1 and None not in found for found in splits_of.values()) and all(
        len(given[name]) >= 2 for name in ("train", "test")
    ):
        train, validation, test = given["train"], given["validation"], given["test"]
    else:
        if len(set().union(*splits_of.values())) > 1:
            logger.warning(
                "%s: its splits are not kept: %s; all images are pooled and split by class",
                without_password(str(data.root)),
                "they share classes"
                if any(len(found) > 1 for found in splits_of.values())
                else "train and test need two classes each, and every file a split",
            )
        order = list(of_class)
        train, validation, test = order[: first_half(len(order))], [], order[first_half(len(order)) :]
    if not validation:
        kept, held = carve_validation(len(train), data.validation_share)
        train, validation = [train[i] for i in kept], [train[i] for i in held]
    return {"train": train, "validation": validation, "test": test}


def _table(
    root: str, files: list[str], columns: Columns, of_class: dict[str, list[_Image]]
) -> tuple[ImageTable, ImageTable]:
    images = [image for found in of_class.values() for image in found]
    ids = tuple(image.image_id for image in images)
    labels_N = np.repeat(np.arange(len(of_class), dtype=np.int64), [len(found) for found in of_class.values()])
    lengths_N = np.array([image.length for image in images], np.int64)
    places_N3 = np.array([image.place for image in images], np.int32).reshape(-1, 3)
    source = ParquetSource(root, tuple(files), columns.image, places_N3, lengths_N, ids)
    known = Listed(lengths_N, [image.sha256 for image in images], 0)
    listed = ImageTable(ids, labels_N, tuple(of_class), known)
    return listed, ImageTable(ids, labels_N, tuple(of_class), source)
