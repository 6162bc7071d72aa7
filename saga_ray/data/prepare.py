"""Writes shards (`saga_ray.data.shards`): images as they are, in a few large files, resumable, checked while they are written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.data.images import PREPROCESSING
from saga_ray.data.places import Place
from saga_ray.data.shards import FORMAT, INDEX, MANIFEST, SPLITS, UNFINISHED, ShardSource
from saga_ray.data.sources import encoded, size_of
from saga_ray.types import Dataset, ImageTable

if TYPE_CHECKING:
    import pyarrow as pa

SHARDS_PER_CPU = 3
"""Readers of a cluster get work of their own each, and files stay large."""
_MAX_GROUP_IMAGES, _MAX_GROUP_BYTES = 64, 32 * 2**20
"""A row group is what a writer holds in memory, and what other readers load at once."""

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


def prepare(dataset: Dataset, out: str, *, validation_share: float, num_shards: int | None, progress: Progress) -> int:
    """Write a data set's images as shards; typed again after an interruption it goes on with what is missing.

    Args:
        out: new or empty folder, or address; or one that the same preparation began.
        validation_share: `data.validation_share` that the data set was read with.
        num_shards: number of files; None takes `SHARDS_PER_CPU` for each CPU of this machine.

    Returns:
        Number of shards that were written now; 0 if all were there.

    Raises:
        ValueError: naming what is in the way (other files, no room), or an image that cannot be read.
    """
    if isinstance(dataset.train.source, ShardSource):
        raise ValueError(
            f"data.root: {dataset.train.source.root} is prepared already; copy the folder where it is needed"
        )
    place = _checked_place(out)
    plan = _plan(dataset, place, validation_share, num_shards)
    if plan is None:
        return 0
    rows = _Rows(dataset)
    bounds = np.linspace(0, len(rows), plan["num_shards"] + 1).round().astype(int).tolist()
    names = [f"images-{i:05d}-of-{plan['num_shards']:05d}.parquet" for i in range(plan["num_shards"])]
    _check_room(place, rows, names, bounds)
    count, num_written, stopped = _Count(len(rows), progress), 0, threading.Event()

    def one(i: int) -> tuple[pa.Table, dict[str, Any], bool]:
        span = range(bounds[i], bounds[i + 1])
        known = _finished_shard(place, names[i], rows, span)
        if known is None:
            _write_shard(place, names[i], rows, span, count, stopped)
            return *describe_shard(place, names[i]), True
        count.add(len(span))
        return *known, False

    tables, shards = [], []
    with ThreadPoolExecutor(max_workers=_num_cpus()) as pool:
        try:
            for index, shard, is_new in pool.map(one, range(plan["num_shards"])):
                tables.append(index.append_column("shard", _constant(len(shards), len(index))))
                shards.append(shard)
                num_written += is_new
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    _finish(place, dataset, plan, rows, tables, shards)
    return num_written


class _Rows:
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
        _, table, row = self.where(number)
        return table.image_ids[row]

    def size(self, number: int) -> int:
        _, table, row = self.where(number)
        return size_of(table.source, row)


class _Count:
    """Progress that several threads add to."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self._done += number
            self._progress(self._done, self._total)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked_place(out: str) -> Place:
    place = Place.open(out)
    if place.is_local and Path(place.path).exists() and not Path(place.path).is_dir():
        raise ValueError(f"--out {place.shown}: is a file; name a new or empty folder")
    return place


def _plan(dataset: Dataset, place: Place, validation_share: float, num_shards: int | None) -> dict[str, Any] | None:
    """What is to be written, new or as it was begun; None if it is all there."""
    wanted = {
        "format": FORMAT,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "validation_share": validation_share,
    }
    found = set(place.list())
    for name in (MANIFEST, UNFINISHED):
        if name not in found:
            continue
        begun = _json(place, name)
        if any(begun.get(key) != value for key, value in wanted.items()):
            raise ValueError(
                f"--out {place.shown}: holds shards of other data ('{begun.get('dataset')}', fingerprint {begun.get('fingerprint')}, "
                f"here '{dataset.name}', {dataset.fingerprint}); name a new or empty folder"
            )
        if name == MANIFEST:
            if UNFINISHED in found:  # killed in the last moment
                place.delete(UNFINISHED)
            return None
        return begun
    others = sorted(found) or (_sub_folders(place) if place.is_local else [])
    if others:
        raise ValueError(f"--out {place.shown}: is not empty (it holds {others[0]}); name a new or empty folder")
    num_images = sum(len(dataset.split(split)) for split in SPLITS)
    plan = wanted | {"num_shards": max(1, min(num_shards or SHARDS_PER_CPU * _num_cpus(), num_images))}
    with place.writing(UNFINISHED) as stream:
        stream.write(json.dumps(plan, indent=2).encode())
    return plan


def _sub_folders(place: Place) -> list[str]:
    path = Path(place.path)
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _json(place: Place, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(place.read(name)))
    except (ValueError, TypeError):
        raise ValueError(
            f"--out {place.shown}: {name} is damaged; delete the folder and type the command again"
        ) from None


def _check_room(place: Place, rows: _Rows, names: list[str], bounds: list[int]) -> None:
    if not place.is_local:
        return
    there = place.list()
    missing = [i for i, name in enumerate(names) if name not in there]
    needed = sum(rows.size(number) for i in missing for number in range(bounds[i], bounds[i + 1]))
    free = shutil.disk_usage(next(p for p in (Path(place.path), *Path(place.path).parents) if p.exists())).free
    if needed > free:
        raise ValueError(
            f"--out {place.shown}: {needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free; make room or name another folder"
        )


def _schema(rows: _Rows) -> pa.Schema:
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


def _write_shard(place: Place, name: str, rows: _Rows, span: range, count: _Count, stopped: threading.Event) -> None:
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
                raise InterruptedError("another shard failed")
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema=schema), row_group_size=len(group))
            count.add(len(group))


def _groups(rows: _Rows, span: range) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for number in span:
        split, table, row = rows.where(number)
        content, label = encoded(table.source, row), int(table.labels_N[row])
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


def _finished_shard(place: Place, name: str, rows: _Rows, span: range) -> tuple[pa.Table, dict[str, Any]] | None:
    """What is in a shard that an earlier attempt wrote; None if it is not there, not whole, or of other images."""
    if not place.has(name):
        return None
    try:
        index, shard = describe_shard(place, name)
    except ValueError:
        return None
    same = index["image_id"].to_pylist() == [rows.image_id(number) for number in span]
    return (index, shard) if same and index["length"].to_pylist() == [rows.size(n) for n in span] else None


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
            places = _find_images(raw, chunk.data_page_offset, table)
            indexes.append(table.drop_columns(["image"]).append_column("offset", pa.array(places[0], pa.int64()))
                .append_column("length", pa.array(places[1], pa.int64())).append_column("crc32", pa.array(places[2], pa.int64())))  # fmt: skip
        digest, num_bytes = _file_digest(file)
    except (OSError, pa.ArrowException, LookupError) as error:
        raise ValueError(f"data.root: {place.shown}/{name}: the shard is damaged ({error}); prepare it again") from None
    index = pa.concat_tables(indexes)
    return index, {"file": name, "images": len(index), "bytes": num_bytes, "sha256": digest}


def _find_images(raw: bytes, start: int, table: pa.Table) -> tuple[list[int], list[int], list[int]]:
    offsets, lengths, crcs, position = [], [], [], 0
    for content, digest in zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        if hashlib.sha256(content).digest() != digest:
            raise LookupError("an image's bytes are not those that were written")
        position = raw.find(content, position)
        if position < 0:
            raise LookupError("an image's bytes are not found in their page")
        offsets.append(start + position)
        lengths.append(len(content))
        crcs.append(zlib.crc32(content))
        position += len(content)
    return offsets, lengths, crcs


def _file_digest(file: Any) -> tuple[str, int]:
    digest, size = hashlib.sha256(), file.size()
    for offset in range(0, size, 2**24):
        digest.update(file.read_at(min(2**24, size - offset), offset))
    return digest.hexdigest(), size


def _constant(value: int, length: int) -> Any:
    import pyarrow as pa

    return pa.array(np.full(length, value, np.int32))


def _finish(
    place: Place, dataset: Dataset, plan: dict[str, Any], rows: _Rows, tables: list[pa.Table], shards: list[dict]
) -> None:
    """Index, then manifest: what is read is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    manifest = {
        **{key: value for key, value in plan.items() if key != "num_shards"},
        "partial": dataset.partial,
        "preprocessing": PREPROCESSING,
        "cut_bottom": max(getattr(table.source, "cut_bottom", 0) for _, table in rows.tables),
        "num_images": {split: len(table) for split, table in rows.tables},
        "classes": {split: list(table.class_names) for split, table in rows.tables},
        "attribute_names": list(dataset.attribute_names),
        "attribute_values": [list(values) for values in dataset.attribute_values],
        "index_sha256": hashlib.sha256(content).hexdigest(),
        "shards": shards,
    }
    for name, text in ((INDEX, content), (MANIFEST, json.dumps(manifest, indent=2).encode())):
        with place.writing(name) as stream:
            stream.write(text)
    place.delete(UNFINISHED)
