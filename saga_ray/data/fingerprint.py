"""One short name for exactly this data: results of different fingerprints are never ranked together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from saga_ray.data.images import PREPROCESSING, FolderSource
from saga_ray.types import ImageTable

MAX_HASHED_BYTES = 256 * 2**20
"""Trees up to this size are read in full; larger ones are known by the sizes of their files, which takes seconds, not minutes."""


def dataset_fingerprint(tables: dict[str, ImageTable], image_size: int) -> str:
    """16 hex digits over splits, image ids, labels, class names, files and preprocessing.

    SHA-256 over one line of JSON per image, in the tables' order. A file is represented by the SHA-256 of its content
    where all files together have at most `MAX_HASHED_BYTES`, else by its size in bytes; which of the two is hashed too.
    Where the folder lies does not matter.

    Args:
        tables: split name to table; sources must be `FolderSource`, or know sizes and digests (`size_of`, `sha256_of`).

    Raises:
        ValueError: naming a file that cannot be read.
    """
    sizes = {name: [_size(source, row) for row in range(len(table))] for name, table, source in _sources(tables)}
    by_content = sum(map(sum, sizes.values())) <= MAX_HASHED_BYTES
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps(parts, ensure_ascii=True).encode() + b"\n")

    add("saga-ray data v1", PREPROCESSING, image_size, "content" if by_content else "size")
    for name, table, source in _sources(tables):
        add(name, list(table.class_names), source.cut_bottom)
        for row, (image_id, label) in enumerate(zip(table.image_ids, table.labels_N.tolist(), strict=True)):
            identity = _content(source, row) if by_content else sizes[name][row]
            add(image_id, label, identity)
    return digest.hexdigest()[:16]


def _sources(tables: dict[str, ImageTable]):
    for name, table in sorted(tables.items()):
        assert isinstance(table.source, FolderSource) or hasattr(table.source, "sha256_of")
        yield name, table, table.source


def _size(source: FolderSource, row: int) -> int:
    if hasattr(source, "size_of"):
        return source.size_of(row)
    path = source.path(row)
    try:
        return path.stat().st_size
    except OSError as error:
        raise _gone(path, error) from None


def _content(source: FolderSource, row: int) -> str:
    if hasattr(source, "sha256_of"):
        return source.sha256_of(row)
    path = source.path(row)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _gone(path, error) from None


def _gone(path: Path, error: OSError) -> ValueError:
    return ValueError(
        f"data.root: {path} cannot be read ({error.strerror}); make it readable, or complete or remove its class"
    )
