"""JPEG files decoded at half, a quarter or an eighth of their size, where that is still no smaller than what is asked for.

The decoder then computes fewer pixels (libjpeg's scaled inverse transform), and there are fewer to resize: large photographs take
half the time or less. Pixels differ a little from the documented conversion, so `data.decode=draft` has to be asked for, and
the data set gets another fingerprint.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from saga_ray.data.pixels.images import DAMAGE, MAX_PIXELS, decode, upright
from saga_ray.types import Dataset, FileSource, ImageTable


def decode_draft(path: str | Path | IO[bytes], size: int, cut_bottom: int = 0) -> np.ndarray:
    """As `saga_ray.data.pixels.images.decode`, but a JPEG file is decoded no larger than needed; others exactly.

    Raises:
        BrokenImageError: naming file and reason.
    """
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            full_width, full_height = image.size
            if full_width * full_height > MAX_PIXELS or full_height <= cut_bottom:
                return decode(path, size, cut_bottom)  # says what is wrong
            # CMYK and grey files stay what they are: asking for RGB would skip their conversion.
            image.draft(None, (size, size))
            image.load()
            cut = round(cut_bottom * image.height / full_height)
            turned = upright(image).convert("RGB")
            turned = turned.crop((0, 0, turned.width, turned.height - cut)) if cut else turned
            return np.asarray(turned.resize((size, size), Image.Resampling.BICUBIC))
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return decode(path, size, cut_bottom)


def drafted(dataset: Dataset) -> Dataset:
    """The same data set with its images decoded by `decode_draft`, under another fingerprint.

    Raises:
        ValueError: for a data set whose images are no files.
    """
    return dataclasses.replace(
        dataset,
        train=drafted_table(dataset.train),
        validation=drafted_table(dataset.validation),
        test=drafted_table(dataset.test),
        fingerprint=hashlib.sha256(f"{dataset.fingerprint} draft v1".encode()).hexdigest()[:16],
    )


def drafted_table(table: ImageTable) -> ImageTable:
    """The same table, its images decoded by `decode_draft`."""
    if not isinstance(table.source, FileSource):
        raise ValueError(
            f"data.decode: draft reads image files, and these images come from {type(table.source).__name__}; set data.decode=exact"
        )
    return dataclasses.replace(table, source=dataclasses.replace(table.source, draft=True))
