"""Cars-196 (Krause et al., 2013) in the three layouts that are about: classes 1-98 train, 99-196 are queried.

1. `cars_annos.mat` beside `car_ims/NNNNNN.jpg`: one list of all images.
2. `devkit/cars_meta.mat`, `devkit/cars_train_annos.mat` and the test annotations with labels (`cars_test_annos_withlabels.mat`, in
   `devkit/` or beside it), `cars_train/` and `cars_test/` (a Kaggle copy has them as `cars_train/cars_train/`).
3. The Kaggle copy by class: `names.csv`, and `car_data/car_data/{train,test}/<class>/`, where a `/` in a class name became `-`.
The owner's own split into train and test is for classification; both parts are pooled. A list of 196 classes is the owner's, and
its classes are known by their number; those of a shorter list by their name.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saga_ray.config import DataConfig
from saga_ray.data.benchmarks.benchmark import benchmark_dataset
from saga_ray.data.benchmarks.layouts import CARS_DEVKIT, CARS_KAGGLE, CARS_ONE_LIST, LAYOUTS, located
from saga_ray.data.benchmarks.manifests import manifest
from saga_ray.data.files.tree import Found, check_unique, image_files, list_folder, read_lines
from saga_ray.types import Dataset

logger = logging.getLogger(__name__)

_TEST_LABELS = "cars_test_annos_withlabels.mat"

Images = dict[int, list[tuple[str, str]]]
"""Class number to (image id, path under root)."""
Reader = Callable[[Path, bool], tuple[dict[int, str], Images]]
"""Class names by number, and images, of a root; True asks for both of the owner's parts."""


def cars_dataset(data: DataConfig) -> Dataset:
    """Read any of the three layouts, from its folder, the parent, or a folder of the archives; image ids are paths below it.

    Raises:
        ValueError: for a tree that is none of them, is damaged, or has other counts (`data.verify_counts`).
    """
    given, found = located(data.root, "cars", _find)
    if found is None:
        wanted = "; or ".join(" + ".join(layout.marks) for layout in LAYOUTS["cars"])
        raise ValueError(
            f"data.root: {given} is not Cars-196 ({wanted} were looked for); name its folder with --data-root DIR"
        )
    root, read = found
    names, images = read(root, data.verify_counts)
    check_unique(names.values(), root)
    unknown = sorted(set(images) - set(names))
    if unknown:
        raise ValueError(
            f"data.root: {root}: images of class {unknown[0]}, but classes are 1 to {len(names)}; the copy is damaged"
        )
    split = manifest("cars")
    owners = list(split.images_of_class)
    class_ids = {name: owners[number - 1] for number, name in names.items()} if len(names) == len(owners) else {}
    of_class = {names[number]: images.get(number, []) for number in sorted(names)}
    return benchmark_dataset(Found("cars", root, of_class, class_ids), split, data)


def _find(folder: Path) -> tuple[Path, Reader] | None:
    for layout in LAYOUTS["cars"]:
        root = layout.find(folder)
        if root is not None:
            return root, _READERS[layout.name]
    return None


def _one_list(root: Path, both_parts: bool) -> tuple[dict[int, str], Images]:
    content = _load_mat(root / "cars_annos.mat", "annotations", "class_names")
    images: Images = {}
    for row in content["annotations"]:
        path = _field(row, "relative_im_path", root / "cars_annos.mat")
        images.setdefault(_number(row, root / "cars_annos.mat"), []).append((path, path))
    return _names(content["class_names"]), images


def _devkit(root: Path, both_parts: bool) -> tuple[dict[int, str], Images]:
    names = _names(_load_mat(root / "devkit" / "cars_meta.mat", "class_names")["class_names"])
    listings = {"cars_train": root / "devkit" / "cars_train_annos.mat"}
    test = next((p for p in (root / "devkit" / _TEST_LABELS, root / _TEST_LABELS) if p.exists()), None)
    if test is not None:
        listings["cars_test"] = test
    elif both_parts:
        raise ValueError(
            f"data.root: {_TEST_LABELS} is neither in {root / 'devkit'} nor in {root}; without it half of the images have no class: "
            f"download it too, or go on without them with --set data.verify_counts=false (rows are then marked partial)"
        )
    else:
        logger.warning("cars: %s is not there, so the images of cars_test are left out", _TEST_LABELS)
    images: Images = {}
    for folder, listing in listings.items():
        inner = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder
        for row in _load_mat(listing, "annotations")["annotations"]:
            name = _field(row, "fname", listing)
            images.setdefault(_number(row, listing), []).append((f"{folder}/{name}", f"{inner}/{name}"))
    return names, images


def _kaggle(root: Path, both_parts: bool) -> tuple[dict[int, str], Images]:
    # Names may hold commas and quotes, but each line is one name.
    names = {number: line.strip().strip('"') for number, line in enumerate(read_lines(root / "names.csv"), 1)}
    number_of_folder = {name.replace("/", "-"): number for number, name in names.items()}
    base = "car_data/car_data" if (root / "car_data" / "car_data").is_dir() else "car_data"
    images: Images = {}
    for part in ("train", "test"):
        folder = root / base / part
        if not folder.is_dir():
            raise ValueError(
                f"data.root: {folder} is missing; both train and test are needed, unpack the archive again"
            )
        for entry in list_folder(folder):
            if not entry.is_dir():
                continue
            if entry.name not in number_of_folder:
                raise ValueError(
                    f"data.root: {entry.path} is not a class of {root / 'names.csv'}; rename or remove the folder"
                )
            paths = [f"{base}/{part}/{entry.name}/{name}" for name in image_files(Path(entry.path))]
            images.setdefault(number_of_folder[entry.name], []).extend((path, path) for path in paths)
    return names, images


def _load_mat(path: Path, *keys: str) -> dict[str, Any]:
    # Takes a while to import, and only this reader needs it.
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        content = scipy.io.loadmat(path, squeeze_me=True, variable_names=keys)
    except (OSError, ValueError, TypeError, LookupError, MatReadError, NotImplementedError, zlib.error) as error:
        raise ValueError(f"data.root: {path} cannot be read as a MATLAB file ({error}); the file is damaged") from None
    for key in keys:
        if key not in content:
            raise ValueError(f"data.root: {path} has no '{key}'; it is another file than Cars-196's")
    # A list of one element is squeezed to a scalar.
    return {key: content[key].reshape(-1) for key in keys}


def _names(class_names: Any) -> dict[int, str]:
    return {number: str(name) for number, name in enumerate(class_names, 1)}


def _field(row: Any, name: str, path: Path) -> str:
    if row.dtype.names is None or name not in row.dtype.names:
        raise ValueError(f"data.root: {path}: annotations have no '{name}'; it is another file than Cars-196's")
    return str(row[name])


def _number(row: Any, path: Path) -> int:
    text = _field(row, "class", path)
    if not text.isdecimal():
        raise ValueError(f"data.root: {path}: an annotation has class {text!r}, not a number; the file is damaged")
    return int(text)


_READERS: dict[str, Reader] = {CARS_ONE_LIST.name: _one_list, CARS_DEVKIT.name: _devkit, CARS_KAGGLE.name: _kaggle}
