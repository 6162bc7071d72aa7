"""What a data set's files are like: images per class, sizes, proportions, formats, bytes; as a table and as plots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_ray.data.inspect.scan import scan
from saga_ray.data.splits import SPLITS
from saga_ray.types import Dataset, OnProgress

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Statistics:
    """Numbers of one data set."""

    counts: dict[str, dict[str, int]]
    """Split to class to images."""
    width_N: np.ndarray
    height_N: np.ndarray
    bytes_N: np.ndarray
    formats: dict[str, int]
    """`JPEG RGB` to images, most frequent first."""
    num_unreadable: int
    """Images whose header could not be read; they count in `counts` and `bytes_N` only."""


def statistics(dataset: Dataset, progress: OnProgress) -> Statistics:
    """Read the header of every image; decodes none."""
    formats: Counter[str] = Counter()
    sizes, num_bytes, unreadable = [], [], 0
    for _, _, seen in scan(dataset, progress, decode=False):
        num_bytes.append(seen.num_bytes)
        if seen.format:
            formats[f"{seen.format} {seen.mode}"] += 1
            sizes.append((seen.width, seen.height))
        else:
            unreadable += 1
    sizes_N2 = np.array(sizes, np.int64).reshape(-1, 2)
    counts = {split: _counts(dataset, split) for split in SPLITS}
    most_first = dict(sorted(formats.items(), key=lambda item: (-item[1], item[0])))
    return Statistics(counts, sizes_N2[:, 0], sizes_N2[:, 1], np.array(num_bytes, np.int64), most_first, unreadable)


def _counts(dataset: Dataset, split: str) -> dict[str, int]:
    table = dataset.split(split)
    of_class_C = np.bincount(table.labels_N, minlength=len(table.class_names)).tolist()
    return dict(zip(table.class_names, of_class_C, strict=True))


def lines(found: Statistics) -> list[str]:
    """The numbers as text."""
    out = [f"{'split':12}{'classes':>9}{'images':>9}   images of a class: least, median, most"]
    for split, of_class in found.counts.items():
        numbers = sorted(of_class.values())
        spread = f"{numbers[0]}, {numbers[len(numbers) // 2]}, {numbers[-1]}" if numbers else "-"
        out.append(f"{split:12}{len(numbers):9,}{sum(numbers):9,}   {spread}")
    out += ["", f"{'':12}{'least':>11}{'5 %':>11}{'median':>11}{'95 %':>11}{'most':>11}"]
    if len(found.width_N):
        for name, values_N in (("width", found.width_N), ("height", found.height_N)):
            out.append(f"{name:12}" + "".join(f"{value:11,.0f}" for value in np.quantile(values_N, _QUANTILES)))
        aspects = np.quantile(found.width_N / found.height_N, _QUANTILES)
        out.append(f"{'width/height':12}" + "".join(f"{value:11.2f}" for value in aspects))
    if len(found.bytes_N):
        out.append(f"{'kilobytes':12}" + "".join(f"{v / 1e3:11,.1f}" for v in np.quantile(found.bytes_N, _QUANTILES)))
    out += ["", *(f"{name:12}{number:9,} images" for name, number in found.formats.items())]
    if found.num_unreadable:
        out.append(f"{'unreadable':12}{found.num_unreadable:9,} images")
    return [*out, f"{'together':12}{found.bytes_N.sum() / 1e6:9,.1f} MB"]


def draw(found: Statistics, path: str) -> None:
    """The numbers as one PNG: images per class, width and height, proportions, bytes.

    Raises:
        ValueError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    (counts, sizes), (aspects, weights) = figure.subplots(2, 2)
    for split, of_class in found.counts.items():
        counts.plot(sorted(of_class.values(), reverse=True), label=f"{split}, {len(of_class)} classes")
    counts.set(xlabel="class, largest first", ylabel="images", ylim=(0, None))
    counts.legend()
    sizes.scatter(found.width_N, found.height_N, s=4, alpha=0.3)
    sizes.set(xlabel="width in pixels", ylabel="height in pixels", xlim=(0, None), ylim=(0, None))
    if len(found.width_N):
        aspects.hist(found.width_N / found.height_N, bins=50)
    aspects.set(xlabel="width / height", ylabel="images")
    if len(found.bytes_N):
        weights.hist(found.bytes_N / 1e3, bins=50)
    weights.set(xlabel="kilobytes", ylabel="images")
    try:
        figure.savefig(Path(path), format="png", dpi=110)
    except OSError as error:
        raise ValueError(
            f"--picture {path}: cannot be written ({error.strerror or error}); name another file"
        ) from None
