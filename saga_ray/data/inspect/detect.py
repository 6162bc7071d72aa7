"""Which data set a folder holds, told by the marks that each owner's layout leaves on disk."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from saga_ray.data.benchmarks.layouts import BIRD_SPECIES, INAT_FOLDERS, INAT_LISTINGS, LAYOUTS, dataset_of_archive
from saga_ray.data.files.archives import archive_stem, is_archive
from saga_ray.data.files.parquet import holds_parquet
from saga_ray.data.files.places import Place, is_address
from saga_ray.data.files.tree import is_hidden
from saga_ray.data.pixels.images import EXTENSIONS
from saga_ray.data.shards.manifest import is_prepared, read_manifest

_OTHER_NAMES = {
    **{name: "cub" for name in ("cub200", "cub_200", "cub2002011", "cub200_2011", "cub_200_2011")},
    **{name: "aircraft" for name in ("fgvc_aircraft", "fgvc_aircraft_2013b")},
    **{name: "cars" for name in ("cars196", "cars_196", "stanford_cars", "stanford_car_dataset_by_classes_folder")},
}
"""How copies of archives are called besides, in small letters and with `_` for `-`. A reader takes any archive that is named itself."""
_COPY_NUMBER = re.compile(r"[ _-]*\(\d+\)$")
"""What a browser adds to the name of a file that it fetched before."""


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

    A layout of which most marks are there is named too, with what is missing; one of which half are there, only if another
    set would not have them, and if there are no folders of classes.

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
    if not any(not is_hidden(name) for name in _names(path)):
        raise ValueError(f"{root}: is empty; name the folder of a data set")
    found = _best_layout(path, half=False)
    if found is not None and not found.missing:
        return found
    for other in (
        _inat(path),
        found,
        _archives(path),
        _folder(path, least=2),
        _best_layout(path, half=True),
        _folder(path, least=1),
    ):
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
    if not is_archive(path):
        raise ValueError(f"{path}: is a file and no archive of a data set; name the folder of a data set")
    stem = _COPY_NUMBER.sub("", archive_stem(path)).lower().replace("-", "_").replace(" ", "_")
    other = _OTHER_NAMES.get(stem)
    return _of_owner(path) or (
        Detected(other, f"the archive {path.name}") if other else Detected("folder", "an archive")
    )


def _archives(path: Path) -> Detected | None:
    """An owner's archive in the folder, as readers look for it there."""
    archives = filter(is_archive, (path / name for name in _names(path)))
    return next(filter(None, map(_of_owner, archives)), None)


def _of_owner(archive: Path) -> Detected | None:
    name = dataset_of_archive(archive_stem(archive))
    return Detected(name, f"the owner's archive {archive.name}") if name else None


def _best_layout(path: Path, half: bool) -> Detected | None:
    """The layout with the fewest marks missing, if most of them are there, or half of them and a telling one."""
    found = []
    for dataset, layouts in LAYOUTS.items():
        for layout in layouts:
            for missing in map(layout.missing, layout.roots(path)):
                told = half and not set(layout.telling) <= set(missing)
                if 2 * len(missing) < len(layout.marks) + told:
                    found.append(Detected(dataset, layout.name, missing))
    return min(found, key=lambda one: len(one.missing), default=None)


def _inat(path: Path) -> Detected | None:
    for name in INAT_FOLDERS:
        folder = path / name
        if folder.is_dir() and any(BIRD_SPECIES.fullmatch(entry) for entry in _names(folder)):
            return Detected("inat-aves", f"{name or 'a folder'} of species")
    for name in INAT_LISTINGS:
        if (path / name).is_file():
            return Detected("inat-aves", name)
    return None


def _folder(path: Path, least: int) -> Detected | None:
    """At least so many folders of images: DIR/<class>/<image>, or DIR/<split>/<class>/<image>."""
    for depth, layout in ((1, "<class>/<image>"), (2, "<split>/<class>/<image>")):
        folders = [path]
        for _ in range(depth):
            folders = [Path(e.path) for folder in folders for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name)]  # fmt: skip
        with_images = (folder for folder in folders if _holds_images(folder))
        if len(list(itertools.islice(with_images, least))) == least:
            return Detected("folder", layout)
    if least == 1 and _holds_images(path):
        return Detected("folder", "images without class folders")
    return None


def _holds_images(folder: Path) -> bool:
    return any(name.lower().endswith(EXTENSIONS) and not is_hidden(name) for name in _names(folder))
