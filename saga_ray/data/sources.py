"""What a source of images tells beside pixels: the bytes behind a row, their number, and what to call it in a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saga_ray.data.images import FolderSource

if TYPE_CHECKING:
    from saga_ray.types import ImageSource


def encoded(source: ImageSource, row: int) -> bytes:
    """The bytes of an image's file.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    if not isinstance(source, FolderSource):
        return source.read(row)  # type: ignore[attr-defined]
    with _readable(source, row):
        return source.path(row).read_bytes()


def size_of(source: ImageSource, row: int) -> int:
    """Number of bytes of an image's file.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    if not isinstance(source, FolderSource):
        return int(source.length_N[row])  # type: ignore[attr-defined]
    with _readable(source, row):
        return source.path(row).stat().st_size


@contextmanager
def _readable(source: FolderSource, row: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"data.root: {source.path(row)} cannot be read ({error.strerror}); make it readable, or complete the copy"
        ) from None


def name_of(source: ImageSource, row: int) -> str:
    """What to call an image in a message: its path, or the file that holds it."""
    return str(source.path(row)) if isinstance(source, FolderSource) else source.name(row)  # type: ignore[attr-defined]


def file_name(source: ImageSource, row: int) -> str:
    """The name that the image's file has or had, for its ending."""
    return Path(source.paths[row]).name if isinstance(source, FolderSource) else source.names[row]  # type: ignore[attr-defined]
