"""CUB-200-2011 (Wah et al., 2011) as its owner ships it: classes 1-100 train, 101-200 are queried.

Read are `images.txt` (`number class_folder/file.jpg`), `image_class_labels.txt` (`image class`), `classes.txt`
(`class name`) and `images/`; bounding boxes are not used, whole pictures are.
"""

from __future__ import annotations

from saga_ray.config import DataConfig
from saga_ray.data.tree import Found, Published, benchmark_dataset, first_with, numbered_lines, root_folder
from saga_ray.types import Dataset

PUBLISHED = Published(100, 5_864, 100, 5_924)
NUM_TRAIN_CLASSES = 100


def cub_dataset(data: DataConfig) -> Dataset:
    """Read `CUB_200_2011` or the folder that holds it; image ids are paths below `images/`, classes keep their numbers' order.

    Raises:
        ValueError: for a tree that is not CUB's, is damaged, or has other counts (`data.verify_counts`).
    """
    given = root_folder(data.root)
    root = first_with(given, ("CUB_200_2011",), "images.txt", "image_class_labels.txt", "classes.txt", "images")
    if root is None:
        raise ValueError(
            f"data.root: {given} is not CUB-200-2011 (images.txt, image_class_labels.txt, classes.txt and images/ were looked for, "
            f"there and in CUB_200_2011/); name its folder with --data-root DIR"
        )
    names = numbered_lines(root / "classes.txt")
    paths = numbered_lines(root / "images.txt")
    images: dict[str, list[tuple[str, str]]] = {names[number]: [] for number in sorted(names)}
    for image, label in numbered_lines(root / "image_class_labels.txt").items():
        if image not in paths or not label.isdigit() or int(label) not in names:
            raise ValueError(
                f"data.root: {root / 'image_class_labels.txt'}: image {image} of class {label} is not in images.txt and classes.txt; "
                f"the files do not belong together, unpack the archive again"
            )
        images[names[int(label)]].append((paths[image], f"images/{paths[image]}"))
    trains = frozenset(name for number, name in names.items() if number <= NUM_TRAIN_CLASSES)
    return benchmark_dataset(Found("cub", root, images, trains), PUBLISHED, data)
