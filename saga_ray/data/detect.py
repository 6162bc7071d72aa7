"""Which data set a folder holds, told by the marks that each owner's layout leaves on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from saga_ray.data.archives import ENDINGS
from saga_ray.data.images import EXTENSIONS
from saga_ray.data.parquet import holds_parquet
from saga_ray.data.places import Place, is_address
from saga_ray.data.shard_manifest import is_prepared, read_manifest

_SPECIES = re.compile(r"\d{5}_Animalia_Chordata_Aves_.+")
_INAT_FOLDERS = ("", "train_mini", "2021_train_mini", "train", "2021_train")
_INAT_FILES = ("train_mini.json", "train.json")
# Name, layout, sub-folders that an archive makes, and the files and folders that the layout has.
_LAYOUTS = (
    ("cub", "CUB_200_2011", ("CUB_200_2011",), ("images.txt", "image_class_labels.txt", "classes.txt", "images")),
    ("aircraft", "fgvc-aircraft-2013b", ("data", "fgvc-aircraft-2013b/data"), ("images_variant_trainval.txt", "images_variant_test.txt", "images")),
    ("cars", "cars_annos.mat and car_ims", ("stanford_cars", "cars196", "CARS196", "cars"), ("cars_annos.mat", "car_ims")),
    ("cars", "devkit, cars_train and cars_test", ("stanford_cars", "cars196", "CARS196", "cars"), ("devkit", "cars_train", "cars_test")),
    ("cars", "the Kaggle copy", ("stanford_cars", "cars196", "CARS196", "cars"), ("names.csv", "car_data")),
)  # fmt: skip
_ARCHIVES = (
    ("cub", "cub"),
    ("aircraft", "fgvc-aircraft"),
    ("inat-aves", "train_mini"),
    ("inat-aves", "train.tar"),
    ("inat-aves", "2021_train"),
    ("cars", "car_"),
    ("cars", "cars"),
    ("cars", "stanford_cars"),
)


@dataclass(frozen=True)
class Detected:
    """What a folder seems to hold.

    Example: `Detected("cars", "devkit, cars_train and cars_test")`.
    """

    dataset: str
    layout: str
    missing: tuple[str, ...] = ()
    """Marks of the layout that are not there: the copy is not complete."""


def detect(root: str) -> Detected:
    """Name the data set in a folder, or in the archive's folder below it.

    A layout of which at least half of the marks are there is named too, with what is missing.

    Raises:
        ValueError: for a folder that does not exist, is empty, or holds nothing that is known.
    """
    if is_prepared(root):
        place = Place.open(root)
        return Detected(read_manifest(place).dataset, "prepared shards")
    if holds_parquet(root):
        return Detected("folder", "Parquet files")
    if is_address(root):
        raise ValueError(
            f"data.root: {Place.open(root).shown}: holds neither prepared shards nor Parquet files; check the address"
        )
    path = Path(root).expanduser()
    if not path.exists():
        raise ValueError(f"{root}: does not exist; name the folder of a data set")
    if path.is_file():
        return _archive(path)
    if not any(not name.startswith(".") for name in _names(path)):
        raise ValueError(f"{root}: is empty; name the folder of a data set")
    found = _best_layout(path)
    if found is not None and not found.missing:
        return found
    for other in (_inat(path), found, _archives(path), _folder(path)):
        if other is not None:
            return other
    raise ValueError(
        f"{root}: no data set was recognised (cub, cars, aircraft, inat-aves, prepared shards, Parquet files, or folders of "
        f"images by class); `saga-ray data help NAME` says what each looks like, and --dataset NAME says which it is"
    )


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be listed ({error.strerror}); make it readable") from None


def _archive(path: Path) -> Detected:
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"{path}: is a file and no archive of a data set; name the folder of a data set")
    return _of_name(path.name) or Detected("folder", "an archive")


def _archives(path: Path) -> Detected | None:
    """An owner's archive in the folder."""
    return next(filter(None, map(_of_name, _names(path))), None)


def _of_name(name: str) -> Detected | None:
    lower = name.lower()
    found = (dataset for dataset, begins in _ARCHIVES if lower.startswith(begins) and lower.endswith(ENDINGS))
    return next((Detected(dataset, f"the owner's archive {name}") for dataset in found), None)


def _best_layout(path: Path) -> Detected | None:
    """The layout with the fewest marks missing, if at least half of them are there."""
    found = []
    for dataset, layout, parents, marks in _LAYOUTS:
        for folder in (path, *(path / parent for parent in parents)):
            missing = tuple(mark for mark in marks if not (folder / mark).exists())
            if 2 * len(missing) <= len(marks):
                found.append(Detected(dataset, layout, missing))
    return min(found, key=lambda one: len(one.missing), default=None)


def _inat(path: Path) -> Detected | None:
    for name in _INAT_FOLDERS:
        folder = path / name
        if folder.is_dir() and any(_SPECIES.fullmatch(entry) for entry in _names(folder)):
            return Detected("inat-aves", f"{name or 'a folder'} of species")
    for name in _INAT_FILES:
        if (path / name).is_file():
            return Detected("inat-aves", name)
    return None


def _folder(path: Path) -> Detected | None:
    """Folders of images: DIR/<class>/<image>, or DIR/<split>/<class>/<image>."""
    for depth, layout in ((1, "<class>/<image>"), (2, "<split>/<class>/<image>")):
        folders = [path]
        for _ in range(depth):
            folders = [Path(e.path) for folder in folders for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")]  # fmt: skip
        if any(name.lower().endswith(EXTENSIONS) for folder in folders for name in _names(folder)):
            return Detected("folder", layout)
    if any(name.lower().endswith(EXTENSIONS) for name in _names(path)):
        return Detected("folder", "images without class folders")
    return None
