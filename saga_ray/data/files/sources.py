"""Sources of images (`saga_ray.types.FileSource`): files of a folder, and what other sources of bytes share with them."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_ray.data.files.places import without_password
from saga_ray.data.pixels.draft import decode_draft
from saga_ray.data.pixels.images import BrokenImageError, decode

Decoder = Callable[..., np.ndarray]


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
        return _stacked(rows, size, self.draft, lambda row, decoder: decoder(self.path(row), size, self.cut_bottom))

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


class StoredImages(ABC):
    """What sources share whose images are bytes inside larger files."""

    length_N: np.ndarray
    """Bytes of each image."""
    names: tuple[str, ...]
    """Image ids, for messages."""
    root: str
    cut_bottom: int
    draft: bool

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The bytes of an image."""

    @abstractmethod
    def place_of(self, row: int) -> str:
        """The file that holds an image, below the root."""

    def size_of(self, row: int) -> int:
        """Number of its bytes."""
        return int(self.length_N[row])

    def sha256_of(self, row: int) -> str:
        """SHA-256 of its bytes, in hexadecimal digits."""
        return hashlib.sha256(self.read(row)).hexdigest()

    def file_name(self, row: int) -> str:
        """The name that the file had."""
        return self.names[row]

    def name(self, row: int) -> str:
        """What to call an image in a message."""
        return f"{without_password(self.root).rstrip('/')}/{self.place_of(row)}: image {self.names[row]}"

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        """Decode `rows` into uint8 (N, size, size, 3), as files are decoded.

        Raises:
            BrokenImageError: for the first image that cannot be decoded.
            ValueError: for bytes that cannot be read.
        """

        def decoded(row: int, decoder: Decoder) -> np.ndarray:
            try:
                return decoder(io.BytesIO(self.read(row)), size, self.cut_bottom)
            except BrokenImageError as error:
                raise BrokenImageError(self.name(row), error.reason) from None

        return _stacked(rows, size, self.draft, decoded)


def _stacked(rows: Sequence[int], size: int, draft: bool, decoded: Callable[[int, Decoder], np.ndarray]) -> np.ndarray:
    decoder = decode_draft if draft else decode
    images_NHWC = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    for place, row in enumerate(rows):
        images_NHWC[place] = decoded(row, decoder)
    return images_NHWC
