"""A picture of a data set: some classes, one per row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saga_ray.types import ImageTable


def contact_sheet(
    table: ImageTable, *, size: int = 128, num_classes: int = 6, num_images: int = 8, gap: int = 4
) -> np.ndarray:
    """Images of evenly spaced classes as one uint8 (height, width, 3) picture, a class per row, on white."""
    chosen = np.unique(np.linspace(0, len(table.class_names) - 1, num_classes).round().astype(int))
    step = size + gap
    sheet_HWC = np.full((len(chosen) * step + gap, num_images * step + gap, 3), 255, np.uint8)
    for line, label in enumerate(chosen):
        rows = np.flatnonzero(table.labels_N == label)[:num_images].tolist()
        for place, image_HWC in enumerate(table.source.load(rows, size)):
            top, left = gap + line * step, gap + place * step
            sheet_HWC[top : top + size, left : left + size] = image_HWC
    return sheet_HWC


def write_contact_sheet(table: ImageTable, path: str | Path) -> None:
    """Write the picture as PNG.

    Raises:
        ValueError: if the file cannot be written.
    """
    from PIL import Image

    try:
        Image.fromarray(contact_sheet(table)).save(path, "PNG")
    except OSError as error:
        raise ValueError(
            f"--picture {path}: cannot be written ({error.strerror or error}); name another file"
        ) from None
