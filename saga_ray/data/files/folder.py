"""Any folder of `DIR/<class>/<image>`, or `DIR/{train,validation,test}/<class>/<image>` where the split is given (or `val`, `Test`...)."""

from __future__ import annotations

import logging
from pathlib import Path

from saga_ray.config import DataConfig
from saga_ray.data.files.tree import Found, check_classes, image_files, list_folder, root_folder, split_dataset
from saga_ray.data.splits import SPLIT_WORDS, SPLITS, first_half
from saga_ray.types import Dataset

logger = logging.getLogger(__name__)


def folder_dataset(data: DataConfig) -> Dataset:
    """Read a folder of classes, its parent, or an archive of it.

    Without given splits the classes are sorted by name (code points: `Zebra` before `ant`), the first half trains (the
    middle one of an odd number included), the second half is queried, and `carve_validation` holds back validation
    classes among the first. With `train` and `test` sub-folders they are the splits, and so is `validation`, if there.

    Raises:
        ValueError: for a folder that is missing, empty, unreadable or without classes, fewer than four classes, a class
            with one image, or a class in two splits.
    """
    root = _inner(root_folder(data.root))
    folders = [entry.name for entry in list_folder(root) if entry.is_dir()]
    splits = {SPLIT_WORDS.get(name.lower()) for name in folders}
    if {"train", "test"} <= splits <= set(SPLITS) and not any(image_files(root / name) for name in folders):
        return _given_splits(root, folders, data)
    found = Found("folder", root, _classes(root, ""))
    _check_any_image(found)
    check_classes(found)
    labels = list(found.images_of_class)
    half = first_half(len(labels))
    return split_dataset(found, labels[:half], None, labels[half:], data, partial=False)


def _inner(root: Path) -> Path:
    """The folder of class folders, where `root` holds nothing but one folder of folders: an archive's parent."""
    entries = list_folder(root)
    if len(entries) != 1 or not entries[0].is_dir() or image_files(Path(entries[0].path)):
        return root
    return Path(entries[0].path)


def _given_splits(root: Path, folders: list[str], data: DataConfig) -> Dataset:
    folder_of: dict[str, str] = {}
    for name in folders:
        split = SPLIT_WORDS[name.lower()]
        if split in folder_of:
            raise ValueError(
                f"data.root: {root}: {folder_of[split]} and {name} both name the {split} split; put their classes into one folder"
            )
        folder_of[split] = name
    classes = {name: _classes(root / name, f"{name}/") for name in folders}
    home: dict[str, str] = {}
    for name in folders:
        for label in classes[name]:
            if label in home:
                raise ValueError(
                    f"data.root: {root}: class '{label}' is in {home[label]} and in {name}, but splits must share no class; "
                    f"keep it in one of them"
                )
            home[label] = name
    for name in folders:
        if len(classes[name]) < 2:
            raise ValueError(
                f"data.root: {root / name} has {len(classes[name])} class(es) with images, and every split needs two; "
                f"move classes there, or put all classes directly into {root}"
            )
    found = Found("folder", root, {label: images for part in classes.values() for label, images in part.items()})
    _check_any_image(found)
    check_classes(found)
    train, validation, test = (list(classes[folder_of[s]]) if s in folder_of else None for s in SPLITS)
    assert train is not None and test is not None
    return split_dataset(found, train, validation, test, data, partial=False)


def _classes(folder: Path, prefix: str) -> dict[str, list[tuple[str, str]]]:
    out = {}
    for entry in list_folder(folder):
        if not entry.is_dir():
            continue
        names = image_files(Path(entry.path))
        if names:
            out[entry.name] = [(f"{prefix}{entry.name}/{name}",) * 2 for name in names]
        else:
            logger.warning("%s: no images in it; the class is left out", entry.path)
    return out


def _check_any_image(found: Found) -> None:
    if found.images_of_class:
        return
    loose = image_files(found.root)
    if loose:
        raise ValueError(
            f"data.root: {found.root} holds images ({loose[0]}, ...) but no folders of images; put those of each class into "
            f"a sub-folder, DIR/<class>/<image>"
        )
    raise ValueError(
        f"data.root: no images found in {found.root}/<class>/ (jpg, png, webp, gif or bmp); name the folder that holds the "
        f"class folders with --data-root DIR"
    )
