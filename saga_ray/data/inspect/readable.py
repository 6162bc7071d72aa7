"""Can all images of a table be decoded? The cheap question that is asked before a run; `saga_ray.data.inspect.check` asks more."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from saga_ray.data.files.sources import FolderSource
from saga_ray.data.pixels.draft import decode_draft
from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.machine import num_cpus
from saga_ray.types import FileSource, ImageTable, OnProgress

_CHUNK, _THREADS_PER_CPU = 32, 4
"""Threads: Pillow decodes outside of Python's lock, and reading waits for disks and object stores."""


def has_files(table: ImageTable) -> bool:
    """True if the table's images are files or their bytes; a world that draws its pictures has nothing to be broken."""
    return isinstance(table.source, FileSource)


def unreadable(tables: Sequence[ImageTable], progress: OnProgress) -> list[BrokenImageError]:
    """What is wrong with the images that cannot be decoded, in the tables' order.

    JPEG files are decoded at an eighth of their size, which reads all of the file and computes few pixels (`decode_draft`);
    what fails there is decoded as an evaluation would.

    Args:
        progress: called with images done and images in all.

    Raises:
        ValueError: if a file or shard cannot be read at all.
    """
    chunks = [
        (table.source, range(start, min(start + _CHUNK, len(table))))
        for table in tables
        for start in range(0, len(table), _CHUNK)
    ]
    total, done, found = sum(map(len, tables)), 0, []
    with ThreadPoolExecutor(_THREADS_PER_CPU * num_cpus(), "readable") as pool:
        try:
            for (_, rows), errors in zip(chunks, pool.map(lambda chunk: list(_errors(*chunk)), chunks), strict=True):
                found += errors
                done += len(rows)
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _errors(source: FileSource, rows: range) -> Iterator[BrokenImageError]:
    for row in rows:
        try:
            decode_draft(io.BytesIO(source.read(row)), 1, source.cut_bottom)
        except BrokenImageError as error:
            yield BrokenImageError(source.name(row), error.reason)


def last_changes(tables: Sequence[ImageTable]) -> str:
    """16 hex digits over when the files of the tables were changed last; of shards, whose bytes have checksums, nothing.

    A fingerprint of a large tree knows its files by their sizes alone.
    """
    digest = hashlib.sha256()
    for table in tables:
        if isinstance(table.source, FolderSource):
            for row in range(len(table)):
                digest.update(f"{table.source.path(row).stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
