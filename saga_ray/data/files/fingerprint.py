"""One short name for exactly this data: results of different fingerprints are never ranked together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from saga_ray.data.pixels.images import PREPROCESSING
from saga_ray.types import ImageTable

MAX_HASHED_BYTES = 256 * 2**20
"""Trees up to this size are read in full; larger ones are known by the sizes of their files, which takes seconds, not minutes."""


def dataset_fingerprint(tables: dict[str, ImageTable], image_size: int) -> str:
    """16 hex digits over splits, image ids, labels, class names, files and preprocessing.

    SHA-256 over one line of JSON per image, in the tables' order. A file is represented by the SHA-256 of its content
    where all files together have at most `MAX_HASHED_BYTES`, else by its size in bytes; which of the two is hashed too.
    Where the folder lies does not matter.

    Args:
        tables: split name to table; whose sources know sizes and digests (`FileSource`).

    Raises:
        ValueError: naming a file that cannot be read.
    """
    sizes = {name: [table.source.size_of(row) for row in range(len(table))] for name, table in tables.items()}
    by_content = sum(map(sum, sizes.values())) <= MAX_HASHED_BYTES
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps(parts, ensure_ascii=True).encode() + b"\n")

    add("saga-ray data v1", PREPROCESSING, image_size, "content" if by_content else "size")
    for name, table in sorted(tables.items()):
        add(name, list(table.class_names), table.source.cut_bottom)
        for row, (image_id, label) in enumerate(zip(table.image_ids, table.labels_N.tolist(), strict=True)):
            identity = table.source.sha256_of(row) if by_content else sizes[name][row]
            add(image_id, label, identity)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Listed:
    """Stands in for a source when a fingerprint is taken: sizes and digests that are known already."""

    size_N: Sequence[int]
    sha256_N: Sequence[bytes]
    cut_bottom: int

    def size_of(self, row: int) -> int:
        """Bytes of an image."""
        return int(self.size_N[row])

    def sha256_of(self, row: int) -> str:
        """SHA-256 of an image's bytes, in hexadecimal digits."""
        return self.sha256_N[row].hex()
