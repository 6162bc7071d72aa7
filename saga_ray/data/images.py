"""Image files to pixels, alike everywhere: formats, limits, one conversion to RGB, a plain resize, keyed augmentation.

What becomes of a file: the first frame; turned as its EXIF orientation says; 16 bits per channel keep the upper 8;
grey is repeated in three channels; palette and CMYK are converted without colour profiles; transparency is laid on
white. Then the whole picture is resized to a square (bicubic with antialiasing), neither cropped nor padded: every image
of a micro-batch has the same number of visual tokens, as in the paper, where a processor of its own would give each its own.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from saga_ray.data.displace import displaced
from saga_ray.data.keyed import keyed_uniforms, mix

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The only parsers that are ever started; what a file is called does not matter."""
MAX_PIXELS = 64_000_000
"""Larger pictures are errors: a few kilobytes can unpack to gigabytes."""
PREPROCESSING = "first frame, EXIF turned, RGB on white, bicubic antialiased square; v1"
"""Part of every fingerprint; changes whenever equal files would give other pixels."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, OverflowError, MemoryError)
"""What Pillow raises for files that are no whole picture."""


class BrokenImageError(ValueError):
    """A file that is not a picture we accept; `path` names it, `reason` says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: cannot be read as an image ({reason}); replace or remove the file")

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


def decode(path: str | Path, size: int, cut_bottom: int = 0) -> np.ndarray:
    """Read one image file into uint8 (size, size, 3).

    Args:
        size: side in pixels of the result.
        cut_bottom: pixels of the file's own resolution that are cut off below (FGVC-Aircraft's copyright banner).

    Raises:
        BrokenImageError: naming file and reason.
    """
    image = open_rgb(path)
    if cut_bottom:
        if image.height <= cut_bottom:
            raise BrokenImageError(path, f"only {image.height} pixels high, and {cut_bottom} are cut off below")
        image = image.crop((0, 0, image.width, image.height - cut_bottom))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def open_rgb(path: str | Path) -> Image.Image:
    """Read the first frame of an image file as RGB, as the head of this module says.

    Raises:
        BrokenImageError: naming file and reason.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(path, f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except BrokenImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImageError(path, f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenImageError(path, f"more than {MAX_PIXELS} pixels") from None
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenImageError(path, reason) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@dataclass(frozen=True)
class FolderSource:
    """Images that are files (a `FileSource`); row i of the table is `paths[i]`.

    Example: `FolderSource(("owl/1.jpg", "wren/1.jpg"), root="/data/birds").load([1], 224)` is (1, 224, 224, 3).
    """

    paths: tuple[str, ...]
    root: str = ""
    """Folder that the paths are relative to."""
    cut_bottom: int = 0
    """Pixels cut off below, before resizing."""

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        """Decode `rows` into uint8 (N, size, size, 3).

        Raises:
            BrokenImageError: for the first file that cannot be decoded.
        """
        images_NHWC = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            images_NHWC[place] = self.decoded(row, size)
        return images_NHWC

    def decoded(self, row: int, size: int) -> np.ndarray:
        """One image as uint8 (size, size, 3)."""
        return decode(self.path(row), size, self.cut_bottom)

    def path(self, row: int) -> Path:
        """The file behind a row."""
        return Path(self.root, self.paths[row])

    def read(self, row: int) -> bytes:
        """Its bytes."""
        with self._readable(row):
            return self.path(row).read_bytes()

    def size_of(self, row: int) -> int:
        """Number of its bytes."""
        with self._readable(row):
            return self.path(row).stat().st_size

    def sha256_of(self, row: int) -> str:
        """SHA-256 of its bytes, in hexadecimal digits."""
        with self._readable(row), self.path(row).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def name(self, row: int) -> str:
        """Its path, for messages."""
        return str(self.path(row))

    def file_name(self, row: int) -> str:
        """The last part of its path."""
        return self.path(row).name

    @contextmanager
    def _readable(self, row: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"data.root: {self.path(row)} cannot be read ({error.strerror}); make it readable, or complete or remove its class"
            ) from None


def augmentation_keys(seed: int, micro_batch: int, rows_N: np.ndarray) -> np.ndarray:
    """Keys of `augment`: (N,) uint64, functions of seed, micro-batch, row and how often the row stood before.

    All repeats of a row are of one class and so on one rank: the keys do not depend on how a batch is split over ranks.
    """
    rows_N = np.asarray(rows_N, dtype=np.int64)
    order_N = np.argsort(rows_N, kind="stable")
    first_N = np.searchsorted(rows_N[order_N], rows_N[order_N])
    repeats_N = np.empty_like(rows_N)
    repeats_N[order_N] = np.arange(len(rows_N)) - first_N
    start = mix(mix(np.uint64(seed)) ^ np.uint64(micro_batch))
    return mix(mix(start ^ rows_N.astype(np.uint64)) ^ repeats_N.astype(np.uint64))


def augment(images_NHWC: np.ndarray, keys_N: np.ndarray, flip: bool, shift_pixels: int) -> np.ndarray:
    """Mirror half of the images and displace all of them, each as its key says.

    A displaced image shows its edge pixels repeated where nothing is left; displacements are whole pixels, uniform in
    -shift_pixels .. shift_pixels on both axes.

    Args:
        keys_N: (N,) uint64 from `augmentation_keys`.
        shift_pixels: largest displacement in pixels, 0 for none.

    Returns:
        uint8 (N, H, W, C), a new array.
    """
    uniforms_N3 = keyed_uniforms((), keys_N, 3)
    mirrored_N = flip & (uniforms_N3[:, 0] < 0.5)
    shift_N2 = np.floor(uniforms_N3[:, 1:] * (2 * shift_pixels + 1)).astype(np.int64) - shift_pixels
    return displaced(images_NHWC, mirrored_N, shift_N2)
