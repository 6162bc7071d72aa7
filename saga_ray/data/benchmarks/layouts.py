"""What the owners' copies look like on disk: one table for the readers and for telling a folder's data set."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from saga_ray.data.files.archives import archives_in, unpacked
from saga_ray.data.files.tree import root_folder

Where = TypeVar("Where")


@dataclass(frozen=True)
class Layout:
    """Files and folders by which one way of laying out a data set is known.

    Example: `Layout("CUB_200_2011", ("images.txt", "images"), ("CUB_200_2011",))`.
    """

    name: str
    """In words."""
    marks: tuple[str, ...]
    """All of them are in the root."""
    parents: tuple[str, ...] = ()
    """Sub-folders that archives make: the root may be one of them, where its parent was named."""
    telling: tuple[str, ...] = ()
    """Marks that other sets do not have."""

    def roots(self, folder: Path) -> tuple[Path, ...]:
        """Where the root may be, when `folder` was named."""
        return (folder, *(folder / parent for parent in self.parents))

    def find(self, folder: Path) -> Path | None:
        """The first possible root that has all marks."""
        return next((root for root in self.roots(folder) if not self.missing(root)), None)

    def missing(self, root: Path) -> tuple[str, ...]:
        """Marks that are not in a root."""
        return tuple(mark for mark in self.marks if not (root / mark).exists())


CUB = Layout(
    "CUB_200_2011",
    ("images.txt", "image_class_labels.txt", "classes.txt", "images"),
    ("CUB_200_2011",),
    ("image_class_labels.txt",),
)
AIRCRAFT = Layout(
    "fgvc-aircraft-2013b",
    ("images", "images_variant_trainval.txt", "images_variant_test.txt"),
    ("data", "fgvc-aircraft-2013b/data"),
    ("images_variant_trainval.txt", "images_variant_test.txt"),
)
_CARS_PARENTS = ("stanford_cars", "cars196", "CARS196", "cars")
CARS_ONE_LIST = Layout(
    "cars_annos.mat and car_ims", ("cars_annos.mat", "car_ims"), _CARS_PARENTS, ("cars_annos.mat", "car_ims")
)
CARS_DEVKIT = Layout(
    "devkit, cars_train and cars_test",
    ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train"),
    _CARS_PARENTS,
    ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train"),
)
CARS_KAGGLE = Layout("the Kaggle copy", ("names.csv", "car_data"), _CARS_PARENTS, ("car_data",))

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cub": (CUB,),
    "aircraft": (AIRCRAFT,),
    "cars": (CARS_ONE_LIST, CARS_DEVKIT, CARS_KAGGLE),
}
"""iNaturalist is known by names that follow a rule, below."""

INAT_FOLDERS = ("", "train_mini", "2021_train_mini", "train", "2021_train")
"""Folders of species, as sub-folders of the one that was named; the first that holds birds is read."""
INAT_LISTINGS = ("train_mini.json", "train.json")
BIRD_SPECIES = re.compile(r"\d{5}_Animalia_Chordata_Aves_.+")
"""Name of a species' folder."""

ARCHIVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "cub": (("CUB_200_2011",),),
    "aircraft": (("fgvc-aircraft-2013b",),),
    "cars": (("car_ims",), ("car_devkit", "cars_train", "cars_test"), ("stanford_cars",)),
    "inat-aves": (("train_mini", "train_mini.json"), ("2021_train_mini",), ("train", "train.json"), ("2021_train",)),
}
"""Names of owners' archives without their endings. Those of one group belong together; in a folder the first group of which there
is one is unpacked."""


def dataset_of_archive(stem: str) -> str | None:
    """The data set whose owner gave an archive this name (without its ending)."""
    return next((name for name, groups in ARCHIVES.items() if any(stem in group for group in groups)), None)


def located(root: str | None, name: str, find: Callable[[Path], Where | None]) -> tuple[Path, Where | None]:
    """Ask `find` for the tree in the data folder and, where it is not there, in the owner's archives in that folder.

    Args:
        name: of the data set, for the names of its archives (`ARCHIVES`).

    Returns:
        The folder that was named, and what `find` said.

    Raises:
        ValueError: as `root_folder`, and for archives that are damaged or refused.
    """
    given = root_folder(root)
    found = find(given)
    archives = (
        next(filter(None, (archives_in(given, group) for group in ARCHIVES[name])), None) if found is None else None
    )
    return given, find(unpacked(archives)) if archives else found
