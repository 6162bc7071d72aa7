"""Images inside row groups of any Parquet files; the groups used last are kept, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from saga_ray.data.files.places import Place, without_password
from saga_ray.data.files.sources import StoredImages

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

CACHE_BYTES = 256 * 2**20
"""Row groups that a process keeps; one that is larger is kept alone."""


@dataclass(frozen=True, eq=False)
class ParquetSource(StoredImages):
    """Images in row groups of Parquet files (a `FileSource`); small and picklable."""

    root: str
    files: tuple[str, ...]
    column: str
    place_N3: np.ndarray
    """int32: file, row group, row in it."""
    length_N: np.ndarray
    names: tuple[str, ...]
    cut_bottom: int = 0
    draft: bool = False

    def read(self, row: int) -> bytes:
        """The bytes of an image.

        Raises:
            ValueError: naming the file, if it cannot be read.
        """
        file, group, place = self.place_N3[row].tolist()
        return _CACHE.images(self.root, self.files[file], group, self.column)[place]

    def place_of(self, row: int) -> str:
        """The file that holds an image."""
        return self.files[self.place_N3[row, 0]]


class RowGroups:
    """The row groups used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._lock = max_bytes, threading.Lock()
        self._kept: OrderedDict[tuple, list[bytes]] = OrderedDict()
        self.num_bytes = 0

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()
            self.num_bytes = 0

    def images(self, root: str, file: str, group: int, column: str) -> list[bytes]:
        """The images of a row group."""
        key = (root, file, group, column)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            images = image_bytes(read_group(root, file, group, [column]).column(0))
            self._kept[key] = images
            self.num_bytes += sum(map(len, images))
            while self.num_bytes > self._max_bytes and len(self._kept) > 1:
                self.num_bytes -= sum(map(len, self._kept.popitem(last=False)[1]))
            return images


_CACHE = RowGroups(CACHE_BYTES)


def forget() -> None:
    """Close files and drop what is kept: the files may have been written anew."""
    _CACHE.clear()
    opened.cache_clear()


@lru_cache(maxsize=256)
def opened(root: str, file: str) -> pq.ParquetFile:
    """A Parquet file of a folder, opened once in each process.

    Raises:
        ValueError: naming the file, if it is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(Place.open(root).open_file(file))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(root, file, error) from None


def read_group(root: str, file: str, group: int, columns: list[str]) -> pa.Table:
    """Some columns of a row group.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    import pyarrow as pa

    try:
        return opened(root, file).read_row_group(group, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(root, file, error) from None


def _damaged(root: str, file: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(
        f"data.root: {without_password(root)}/{file}: cannot be read as Parquet ({reason}); copy the file again"
    )


def image_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Bytes of each image; none where a row has none, which no decoder accepts."""
    import pyarrow as pa

    values = column.combine_chunks()
    if pa.types.is_struct(values.type):
        values = values.field("bytes")
    return [value or b"" for value in values.to_pylist()]
