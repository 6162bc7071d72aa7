"""Pictures to decode: crops of the sample photographs that scikit-learn ships, as JPEG files like those of the benchmarks."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from saga_ray.data.files.sources import FolderSource
from saga_ray.types import ImageTable, OnProgress

USUAL, LARGE = (500, 375), (1024, 683)
"""Width and height: usual in CUB-200-2011 and iNaturalist, and in FGVC-Aircraft."""
_SAMPLES = ("china.jpg", "flower.jpg")
_QUALITY = 90


def make_photographs(
    folder: Path,
    num_classes: int,
    images_per_class: int,
    size: tuple[int, int] = USUAL,
    on_image: OnProgress = lambda done, of: None,
) -> ImageTable:
    """Write `folder/<class>/<image>.jpg`, of `size` = (width, height), and return their table."""
    samples = _samples()
    rng = np.random.default_rng(0)
    paths = [f"{label:05d}/{image:03d}.jpg" for label in range(num_classes) for image in range(images_per_class)]
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        _crop(samples[number % len(samples)], size, rng).save(folder / path, quality=_QUALITY)
        on_image(number + 1, len(paths))
    return _table(folder, paths)


def _samples() -> list[Image.Image]:
    # Its folder only: importing scikit-learn takes seconds.
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    images = Path(package.origin).parent / "datasets" / "images"
    return [Image.open(images / name).convert("RGB") for name in _SAMPLES]


def _crop(photograph: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width = int(rng.integers(400, photograph.width))
    height = min(photograph.height, width * size[1] // size[0])
    left = int(rng.integers(0, photograph.width - width + 1))
    top = int(rng.integers(0, photograph.height - height + 1))
    crop = photograph.crop((left, top, left + width, top + height))
    return crop.resize(size, Image.Resampling.BICUBIC)


def many_times(table: ImageTable, folder: Path, times: int) -> ImageTable:
    """A table `times` as long, of files and classes of their own: hard links, since what matters is how many there are."""
    assert isinstance(table.source, FolderSource)
    paths = []
    for copy in range(times):
        for path in table.source.paths:
            label, name = path.split("/")
            linked = f"{copy:03d}-{label}/{name}"
            (folder / linked).parent.mkdir(parents=True, exist_ok=True)
            os.link(Path(table.source.root, path), folder / linked)
            paths.append(linked)
    return _table(folder, paths)


def _table(folder: Path, paths: list[str]) -> ImageTable:
    class_names = tuple(dict.fromkeys(path.split("/")[0] for path in paths))
    numbers = {name: number for number, name in enumerate(class_names)}
    labels_N = np.array([numbers[path.split("/")[0]] for path in paths])
    return ImageTable(tuple(paths), labels_N, class_names, FolderSource(tuple(paths), str(folder)))
