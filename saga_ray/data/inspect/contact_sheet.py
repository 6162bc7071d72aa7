"""Pictures of a data set: some classes, one per row; all images of a class; pairs that an encoder takes for one class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.types import ImageTable

_BROKEN_RGB = (200, 40, 40)


def contact_sheet(
    table: ImageTable, *, size: int = 128, num_classes: int = 6, num_images: int = 8, gap: int = 4
) -> np.ndarray:
    """Images of evenly spaced classes as one uint8 (height, width, 3) picture, a class per row, on white."""
    chosen = np.unique(np.linspace(0, len(table.class_names) - 1, num_classes).round().astype(int))
    rows = [np.flatnonzero(table.labels_N == label)[:num_images].tolist() for label in chosen]
    return sheet(table, rows, num_columns=num_images, size=size, gap=gap)


def class_sheet(
    table: ImageTable, label: int, *, size: int = 128, num_columns: int = 10, max_images: int = 200
) -> np.ndarray:
    """The images of one class, at most `max_images`, in the table's order."""
    of_class = np.flatnonzero(table.labels_N == label)[:max_images].tolist()
    lines = [of_class[start : start + num_columns] for start in range(0, len(of_class), num_columns)]
    return sheet(table, lines, num_columns=min(num_columns, len(of_class)), size=size)


def sheet(
    table: ImageTable, lines: Sequence[Sequence[int]], *, num_columns: int, size: int = 128, gap: int = 4
) -> np.ndarray:
    """Rows of a table as one uint8 (height, width, 3) picture on white, a line of it for each line; broken images are red."""
    step = size + gap
    sheet_HWC = np.full((len(lines) * step + gap, num_columns * step + gap, 3), 255, np.uint8)
    for line, rows in enumerate(lines):
        for place, row in enumerate(rows):
            top, left = gap + line * step, gap + place * step
            sheet_HWC[top : top + size, left : left + size] = _picture(table, row, size)
    return sheet_HWC


def _picture(table: ImageTable, row: int, size: int) -> np.ndarray:
    try:
        return table.source.load([row], size)[0]
    except BrokenImageError:
        return np.full((size, size, 3), _BROKEN_RGB, np.uint8)


def hard_pairs(embeddings_NE: np.ndarray, labels_N: np.ndarray, num_pairs: int) -> list[tuple[int, int, float]]:
    """Images of two classes that an embedding takes for one: (row, row, cosine), the most similar pair of two classes first.

    Of every two classes only the most similar pair counts, so that a class of near copies does not fill the list. Ties go to
    the lower rows. Rows with embedding 0 (broken images) belong to no pair.

    Args:
        embeddings_NE: any length; compared by cosine.
    """
    lengths_N = np.linalg.norm(embeddings_NE, axis=1)
    unit_NE = embeddings_NE / np.where(lengths_N > 0, lengths_N, 1.0)[:, None]
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for row in np.flatnonzero(lengths_N > 0).tolist():
        cosine_N = unit_NE[row + 1 :] @ unit_NE[row]
        usable_N = (labels_N[row + 1 :] != labels_N[row]) & (lengths_N[row + 1 :] > 0)
        for other in _best_of_each_class(cosine_N, labels_N[row + 1 :], usable_N):
            classes = tuple(sorted((int(labels_N[row]), int(labels_N[row + 1 + other]))))
            found = (-float(cosine_N[other]), row, row + 1 + other)
            best[classes] = min(best.get(classes, found), found)
    return [(first, second, -cosine) for cosine, first, second in sorted(best.values())[:num_pairs]]


def _best_of_each_class(cosine_N: np.ndarray, labels_N: np.ndarray, usable_N: np.ndarray) -> list[int]:
    """The position of the largest cosine of each class, the lowest at ties."""
    places_M = np.flatnonzero(usable_N)
    order_M = places_M[np.lexsort((places_M, -cosine_N[places_M], labels_N[places_M]))]
    _, first = np.unique(labels_N[order_M], return_index=True)
    return order_M[first].tolist()


def pair_sheet(table: ImageTable, pairs: Sequence[tuple[int, int, float]], *, size: int = 160) -> np.ndarray:
    """Pairs one below the other, with their classes and their cosine beside them: uint8 (height, width, 3)."""
    from PIL import Image, ImageDraw

    pictures_HWC = sheet(table, [(first, second) for first, second, _ in pairs], num_columns=2, size=size)
    page = Image.new("RGB", (pictures_HWC.shape[1] + 460, pictures_HWC.shape[0]), "white")
    page.paste(Image.fromarray(pictures_HWC))
    draw = ImageDraw.Draw(page)
    for line, (first, second, cosine) in enumerate(pairs):
        names = [table.class_names[table.labels_N[row]] for row in (first, second)]
        text = f"{cosine:.3f}\n{_shown(names[0])}\n{_shown(names[1])}"
        draw.multiline_text((pictures_HWC.shape[1] + 8, line * (size + 4) + size // 3), text, "black", font_size=14)
    return np.asarray(page)


def _shown(name: str) -> str:
    """A class name as the drawing font can show it."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:60]


def sheet_name(number: int, class_name: str) -> str:
    """A file's name for a class: its number, and what of its name is safe in a file's name."""
    return f"{number:04d}-{re.sub(r'[^A-Za-z0-9.-]+', '_', class_name).strip('._')[:80] or 'class'}.png"


def write_picture(pixels_HWC: np.ndarray, path: str | Path) -> None:
    """Write pixels as PNG.

    Raises:
        ValueError: if the file cannot be written.
    """
    from PIL import Image

    try:
        Image.fromarray(pixels_HWC).save(path, "PNG")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None


def write_contact_sheet(table: ImageTable, path: str | Path) -> None:
    """Write `contact_sheet` as PNG.

    Raises:
        ValueError: if the file cannot be written.
    """
    write_picture(contact_sheet(table), path)
