"""One shard: images written into a Parquet file so that each can be read as a range of bytes, and what such a file holds."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.data.files.places import Place
from saga_ray.data.splits import SPLITS
from saga_ray.types import Dataset, ImageTable, OnProgress

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_GROUP_IMAGES, _MAX_GROUP_BYTES = 64, 32 * 2**20
"""A row group is what a writer holds in memory, and what other readers load at once."""


class Stopped(Exception):
    """Another shard failed, or the user wants to stop."""


class AllRows:
    """All images of a data set in the tables' order, as one list."""

    def __init__(self, dataset: Dataset) -> None:
        self.tables: list[tuple[str, ImageTable]] = [(split, dataset.split(split)) for split in SPLITS]
        self._starts = np.cumsum([0, *(len(table) for _, table in self.tables)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def where(self, number: int) -> tuple[str, ImageTable, int]:
        """Split, table and row of an image."""
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return *self.tables[part], number - int(self._starts[part])

    def image_id(self, number: int) -> str:
        """The name of an image."""
        _, table, row = self.where(number)
        return table.image_ids[row]

    def size(self, number: int) -> int:
        """Bytes of an image's file."""
        _, table, row = self.where(number)
        return table.source.size_of(row)


class Count:
    """Progress that several threads add to."""

    def __init__(self, total: int, progress: OnProgress) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, number: int) -> None:
        """So many images more are done."""
        with self._lock:
            self._done += number
            self._progress(self._done, self._total)


def _schema(rows: AllRows) -> pa.Schema:
    import pyarrow as pa

    fields = [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("class_name", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("sha256", pa.binary(32)),
    ]
    if any(table.truth_NA is not None for _, table in rows.tables):
        fields.append(("attributes", pa.list_(pa.int32())))
    return pa.schema(fields)


def write_shard(place: Place, name: str, rows: AllRows, span: range, count: Count, stopped: threading.Event) -> None:
    """Write some images; the file appears when it is whole, or not at all.

    Raises:
        Stopped: when `stopped` is set.
        ValueError: naming an image that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(rows)
    with (
        place.writing(name) as stream,
        pq.ParquetWriter(
            stream,
            schema,
            # The images' bytes must lie in the file as they are: no dictionary, no compression.
            use_dictionary=["class_name", "split"],
            compression={field.name: "none" if field.name == "image" else "zstd" for field in schema},
            write_statistics=["image_id", "label"],
        ) as writer,
    ):
        for group in _groups(rows, span):
            if stopped.is_set():
                raise Stopped
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema=schema), row_group_size=len(group))
            count.add(len(group))


def _groups(rows: AllRows, span: range) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for number in span:
        split, table, row = rows.where(number)
        content, label = table.source.read(row), int(table.labels_N[row])
        line = {
            "image_id": table.image_ids[row],
            "image": content,
            "class_name": table.class_names[label],
            "label": label,
            "split": split,
            "sha256": hashlib.sha256(content).digest(),
        }
        if table.truth_NA is not None:
            line["attributes"] = table.truth_NA[row].tolist()
        group.append(line)
        num_bytes += len(content)
        if len(group) >= _MAX_GROUP_IMAGES or num_bytes >= _MAX_GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def describe_shard(place: Place, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """Where the images of a shard lie in its file, and the file's checksum; every image is compared with its own digest.

    A value's bytes stand in its page as they are, so the place where they are found is the place to read them from.

    Raises:
        ValueError: naming the file, if it is not whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, indexes = place.open_file(name), []
    try:
        parquet = pq.ParquetFile(file)
        column = parquet.schema_arrow.get_field_index("image")
        for group in range(parquet.num_row_groups):
            chunk = parquet.metadata.row_group(group).column(column)
            raw = file.read_at(chunk.total_compressed_size, chunk.data_page_offset)
            table = parquet.read_row_group(group)
            index = table.drop_columns(["image"])
            for column_name, values in _find_images(raw, chunk.data_page_offset, table).items():
                index = index.append_column(column_name, pa.array(values, pa.int64()))
            indexes.append(index)
        digest, num_bytes = _file_digest(file)
    except (OSError, pa.ArrowException, LookupError) as error:
        raise ValueError(f"data.root: {place.shown}/{name}: the shard is damaged ({error}); prepare it again") from None
    index = pa.concat_tables(indexes)
    return index, {"file": name, "images": len(index), "bytes": num_bytes, "sha256": digest}


def _find_images(raw: bytes, start: int, table: pa.Table) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"offset": [], "length": [], "crc32": []}
    position = 0
    for content, digest in zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        if hashlib.sha256(content).digest() != digest:
            raise LookupError("an image's bytes are not those that were written")
        position = raw.find(content, position)
        if position < 0:
            raise LookupError("an image's bytes are not found in their page")
        for name, value in (("offset", start + position), ("length", len(content)), ("crc32", zlib.crc32(content))):
            found[name].append(value)
        position += len(content)
    return found


def _file_digest(file: Any) -> tuple[str, int]:
    digest, size = hashlib.sha256(), file.size()
    for offset in range(0, size, 2**24):
        digest.update(file.read_at(min(2**24, size - offset), offset))
    return digest.hexdigest(), size
