"""Looks at every image of a data set, in all processors: what its file is, and whether it can be decoded."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from PIL import Image

from saga_ray.data.inspect.duplicates import FLAT, perceptual_hash
from saga_ray.data.pixels.images import FORMATS, BrokenImageError, open_rgb
from saga_ray.data.splits import SPLITS
from saga_ray.machine import num_cpus
from saga_ray.types import Dataset, FileSource, OnProgress

_CHUNK = 32
_FEW = 256
"""So few images are looked at sooner here than in processes that must start first."""
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Seen:
    """What one image's file is."""

    num_bytes: int
    sha256: bytes = b""
    format: str = ""
    """As the content says, not the name; empty where no format is known."""
    mode: str = ""
    """Pillow's name of the pixels' kind, such as RGB, L, CMYK or P."""
    width: int = 0
    height: int = 0
    num_frames: int = 1
    is_turned: bool = False
    """EXIF says that the picture is to be turned or mirrored."""
    phash: int = FLAT
    broken: str | None = None
    """Why it cannot be used."""


def scan(
    dataset: Dataset, progress: OnProgress, *, decode: bool = True, num_processes: int | None = None
) -> Iterator[tuple[str, int, Seen]]:
    """(split, row, what was seen) of every image, in the order of the tables.

    Args:
        decode: decode the pixels too, and hash what they show; else only the header is read.
        num_processes: None takes one for each processor, and this process alone for few images.

    Raises:
        ValueError: if a file cannot be read at all, or a process dies over an image.
    """
    sources = {split: dataset.split(split).source for split in SPLITS}
    chunks = [
        (split, range(start, min(start + _CHUNK, len(dataset.split(split)))))
        for split in SPLITS
        for start in range(0, len(dataset.split(split)), _CHUNK)
    ]
    total = sum(len(rows) for _, rows in chunks)
    if num_processes is None:
        num_processes = 1 if total <= _FEW else num_cpus()
    done = 0
    for (split, rows), seen in zip(chunks, _run(sources, chunks, decode, num_processes), strict=True):
        yield from ((split, row, one) for row, one in zip(rows, seen, strict=True))
        done += len(rows)
        progress(done, total)


def _run(
    sources: dict[str, FileSource], chunks: list[tuple[str, range]], decode: bool, num_processes: int
) -> Iterator[list[Seen]]:
    if num_processes == 1:
        for split, rows in chunks:
            yield _examine_rows(sources[split], rows, decode)
        return
    # A new interpreter: threads of this one (progress, pyarrow) must not be copied.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _remember, (sources, decode)) as pool:
        number = 0
        try:
            for found in pool.map(_examine_chunk, chunks):
                yield found
                number += 1
        except BrokenProcessPool:
            split, rows = chunks[min(number, len(chunks) - 1)]
            raise ValueError(
                f"data.root: a process died while it decoded images {rows.start} to {rows.stop - 1} of {split} or soon after "
                f"(out of memory?); free some memory or remove the images at fault"
            ) from None


_SHARED: dict[str, Any] = {}


def _remember(sources: dict[str, FileSource], decode: bool) -> None:
    _SHARED.update(sources=sources, decode=decode)


def _examine_chunk(chunk: tuple[str, range]) -> list[Seen]:
    split, rows = chunk
    return _examine_rows(_SHARED["sources"][split], rows, _SHARED["decode"])


def _examine_rows(source: FileSource, rows: range, decode: bool) -> list[Seen]:
    return [examine(source.read(row), source.cut_bottom, decode) for row in rows]


def examine(content: bytes, cut_bottom: int = 0, decode: bool = True) -> Seen:
    """What an image file is, and why it is broken if it is.

    Pillow's `verify` finds damage that decoding passes over (checksums of a PNG), and decoding finds what `verify` passes over
    (a JPEG cut short): both must agree that a file is sound.
    """
    known: dict[str, Any] = {"num_bytes": len(content), "sha256": hashlib.sha256(content).digest() if decode else b""}
    if not content:
        return Seen(**known, broken="the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes near the limit; what is beyond it is an error below
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                known |= {
                    "format": image.format or "",
                    "mode": image.mode,
                    "width": image.width,
                    "height": image.height,
                }
                known |= {"num_frames": getattr(image, "n_frames", 1)}
                known |= {"is_turned": image.getexif().get(_ORIENTATION, 1) not in (0, 1)}
            if decode:
                # Opened again: `verify` must come before anything else is read.
                with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                    image.verify()
    except Exception as error:  # whatever a parser makes of damage; decoding below gives the reason that training would
        known["broken"] = f"damaged: {str(error) or type(error).__name__}"
    if not decode:
        return Seen(**known)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_rgb(io.BytesIO(content))
        if image.height <= cut_bottom:
            return Seen(**known | {"broken": f"only {image.height} pixels high, and {cut_bottom} are cut off below"})
        # What all pictures of a set show below, its owner's banner, makes none of them alike.
        shown = image.crop((0, 0, image.width, image.height - cut_bottom)) if cut_bottom else image
        return Seen(**known, phash=perceptual_hash(shown))
    except BrokenImageError as error:
        return Seen(**known | {"broken": error.reason})
