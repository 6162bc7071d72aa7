"""Small data sets on disk, in the formats of their owners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from saga_ray.config import DataConfig


def picture(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Write an image whose pixels are a function of `number`; the file's ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(number).integers(0, 256, size=(3, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def class_folders(root: Path, num_images: dict[str, int], suffix: str = ".jpg") -> Path:
    """`root/<class>/<number>.jpg`."""
    number = 0
    for label, count in num_images.items():
        for i in range(count):
            picture(root / label / f"{i}{suffix}", number)
            number += 1
    return root


def small_config(root: Path, **changes: object) -> DataConfig:
    """A data config for trees of a few classes."""
    values = {"root": str(root), "image_size": 16, "classes_per_batch": 2, "images_per_class": 2, "num_shards": 1}
    return DataConfig(**(values | {"pairs_per_batch": 2} | changes))
