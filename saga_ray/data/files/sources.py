"""Sources of images (`saga_ray.types.FileSource`): files of a folder, and what other sources of bytes share with them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_ray.data.pixels.draft import decode_draft
from saga_ray.data.pixels.images import BrokenImageError, decode
from saga_ray.types import FileSource


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
    draft: bool = False
    """Decode as `decode_draft` does."""

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        """Decode `rows` into uint8 (N, size, size, 3).

        Raises:
            BrokenImageError: for the first file that cannot be decoded.
        """
        decoder = decode_draft if self.draft else decode
        images_NHWC = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            images_NHWC[place] = decoder(self.path(row), size, self.cut_bottom)
        return images_NHWC

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


def decode_rows(source: FileSource, rows: Sequence[int], size: int) -> np.ndarray:
    """Decode rows from their bytes, as files are decoded: uint8 (N, size, size, 3).

    Raises:
        BrokenImageError: for the first image that cannot be decoded.
    """
    decoder = decode_draft if source.draft else decode
    images_NHWC = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    for place, row in enumerate(rows):
        try:
            images_NHWC[place] = decoder(io.BytesIO(source.read(row)), size, source.cut_bottom)
        except BrokenImageError as error:
            raise BrokenImageError(source.name(row), error.reason) from None
    return images_NHWC
