"""Image files to pixels, alike everywhere: formats, limits, one conversion to RGB, a plain resize, keyed augmentation.

What becomes of a file: the first frame; turned as its EXIF orientation says; 16 bits per channel keep the upper 8;
grey is repeated in three channels; palette and CMYK are converted without colour profiles; transparency is laid on
white. Then the whole picture is resized to a square (bicubic with antialiasing), neither cropped nor padded: every image
of a micro-batch has the same number of visual tokens, as in the paper, where a processor of its own would give each its own.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from saga_ray.data.pixels.displace import displaced
from saga_ray.data.pixels.keyed import keyed_uniforms, mix

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

    def __init__(self, path: str | Path | IO[bytes], reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: cannot be read as an image ({reason}); replace or remove the file")

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


def decode(path: str | Path | IO[bytes], size: int, cut_bottom: int = 0) -> np.ndarray:
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


def open_rgb(path: str | Path | IO[bytes]) -> Image.Image:
    """Read the first frame of an image file as RGB, as the head of this module says.

    Raises:
        BrokenImageError: naming file and reason.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(path, f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
            image.load()
            return _to_rgb(upright(image))
    except BrokenImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImageError(path, f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenImageError(path, f"more than {MAX_PIXELS} pixels") from None
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenImageError(path, reason) from None


def upright(image: Image.Image) -> Image.Image:
    """A loaded picture, turned as its EXIF orientation says.

    Raises:
        ValueError: for EXIF data that cannot be read: which way is up is then not known.
    """
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow meets a tag of a wrong type with AttributeError, TypeError and others
        raise ValueError(f"damaged EXIF data: {error or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


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
