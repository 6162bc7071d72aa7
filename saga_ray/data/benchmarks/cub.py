"""CUB-200-2011 (Wah et al., 2011) as its owner ships it: classes 1-100 train, 101-200 are queried.

Read are `images.txt` (`number class_folder/file.jpg`), `image_class_labels.txt` (`image class`), `classes.txt`
(`class name`), `images/`, and the attributes where they are there (`saga_ray.data.benchmarks.cub_attributes`). Bounding boxes and parts
are not read: the protocol uses whole pictures.
"""

from __future__ import annotations

from saga_ray.config import DataConfig
from saga_ray.data.benchmarks.benchmark import benchmark_dataset
from saga_ray.data.benchmarks.cub_attributes import read_truth
from saga_ray.data.benchmarks.layouts import CUB, located
from saga_ray.data.benchmarks.manifests import manifest
from saga_ray.data.files.tree import Found, check_unique, numbered_lines
from saga_ray.types import Dataset


def cub_dataset(data: DataConfig) -> Dataset:
    """Read the archive, `CUB_200_2011` or the folder that holds it; image ids are paths below `images/`, classes keep their
    numbers' order.

    Raises:
        ValueError: for a tree that is not CUB's, is damaged, or has other counts (`data.verify_counts`).
    """
    given, root = located(data.root, "cub", CUB.find)
    if root is None:
        raise ValueError(
            f"data.root: {given} is not CUB-200-2011 (images.txt, image_class_labels.txt, classes.txt and images/ were looked for, "
            f"there and in CUB_200_2011/); name its folder with --data-root DIR"
        )
    names = numbered_lines(root / "classes.txt")
    check_unique(names.values(), root / "classes.txt")
    paths = numbered_lines(root / "images.txt")
    images: dict[str, list[tuple[str, str]]] = {names[number]: [] for number in sorted(names)}
    for image, label in sorted(numbered_lines(root / "image_class_labels.txt").items()):
        if image not in paths or not label.isdecimal() or int(label) not in names:
            raise ValueError(
                f"data.root: {root / 'image_class_labels.txt'}: image {image} of class {label} is not in images.txt and classes.txt; "
                f"the files do not belong together, unpack the archive again"
            )
        images[names[int(label)]].append((paths[image], f"images/{paths[image]}"))
    found = Found("cub", root, images, truth=read_truth(root, paths))
    return benchmark_dataset(found, manifest("cub"), data)
