"""Writes shards (`saga_ray.data.shards.prepared`): images as they are, in a few large files, resumable, checked while they are written."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import ValidationError

from saga_ray.config import DataConfig
from saga_ray.data.files.fingerprint import dataset_fingerprint
from saga_ray.data.files.places import Place
from saga_ray.data.pixels.images import PREPROCESSING
from saga_ray.data.shards.manifest import FORMAT, INDEX, MANIFEST, UNFINISHED, Begun, ShardManifest, what_is_wrong
from saga_ray.data.shards.prepared import ShardSource, tables_of
from saga_ray.data.shards.writing import AllRows, Count, Stopped, describe_shard, write_shard
from saga_ray.data.splits import SPLITS
from saga_ray.machine import num_cpus
from saga_ray.types import Dataset, OnProgress

if TYPE_CHECKING:
    import pyarrow as pa

Form = TypeVar("Form", Begun, ShardManifest)

SHARDS_PER_CPU = 3
"""Readers of a cluster get work of their own each, and files stay large."""


def prepare(dataset: Dataset, out: str, data: DataConfig, num_shards: int | None, progress: OnProgress) -> int:
    """Write a data set's images as shards; typed again after an interruption it goes on with what is missing.

    Args:
        out: new or empty folder, or address; or one that the same preparation began.
        data: what the data set was read with.
        num_shards: number of files; None takes `SHARDS_PER_CPU` for each CPU of this machine.

    Returns:
        Number of shards that were written now; 0 if all were there.

    Raises:
        ValueError: naming what is in the way (other files, no room), or an image that cannot be read.
    """
    if data.decode != "exact":
        raise ValueError(
            f"data.decode: {data.decode} is not for shards, which hold the files as they are; leave the key out"
        )
    if isinstance(dataset.train.source, ShardSource):
        raise ValueError(
            f"data.root: {dataset.train.source.root} is prepared already; copy the folder where it is needed"
        )
    place = _checked_place(out)
    plan = _plan(dataset, place, data.validation_share, num_shards)
    if plan is None:
        return 0
    rows = AllRows(dataset)
    bounds = np.linspace(0, len(rows), plan.num_shards + 1).round().astype(int).tolist()
    names = [f"images-{i:05d}-of-{plan.num_shards:05d}.parquet" for i in range(plan.num_shards)]
    _check_room(place, rows, names, bounds)
    described = _write_all(place, rows, names, bounds, Count(len(rows), progress))
    tables = [
        index.append_column("shard", _constant(number, len(index))) for number, (index, _, _) in enumerate(described)
    ]
    _finish(place, dataset, plan, tables, [shard for _, shard, _ in described], data.image_size)
    return sum(is_new for _, _, is_new in described)


def _write_all(
    place: Place, rows: AllRows, names: list[str], bounds: list[int], count: Count
) -> list[tuple[pa.Table, dict[str, Any], bool]]:
    """Index, description and whether it was written now, of every shard."""
    stopped = threading.Event()

    def one(number: int) -> tuple[pa.Table, dict[str, Any], bool]:
        span = range(bounds[number], bounds[number + 1])
        known = _finished_shard(place, names[number], rows, span)
        if known is not None:
            count.add(len(span))
            return *known, False
        try:
            write_shard(place, names[number], rows, span, count, stopped)
        except BaseException:
            stopped.set()
            raise
        return *describe_shard(place, names[number]), True

    # Threads: reading, hashing and writing wait for disks or let others run meanwhile.
    with ThreadPoolExecutor(max_workers=num_cpus()) as pool:
        jobs = [pool.submit(one, number) for number in range(len(names))]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    failed = [error for job in jobs if not job.cancelled() and (error := job.exception()) is not None]
    for error in sorted(failed, key=lambda error: isinstance(error, Stopped)):
        raise error
    return [job.result() for job in jobs]


def _checked_place(out: str) -> Place:
    place = Place.open(out)
    if place.is_local and Path(place.path).exists() and not Path(place.path).is_dir():
        raise ValueError(f"--out {place.shown}: is a file; name a new or empty folder")
    return place


def _plan(dataset: Dataset, place: Place, validation_share: float, num_shards: int | None) -> Begun | None:
    """What is to be written, new or as it was begun; None if it is all there."""
    wanted = {
        "format": FORMAT,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "validation_share": validation_share,
    }
    found = set(place.list())
    for name, form in ((MANIFEST, ShardManifest), (UNFINISHED, Begun)):
        if name not in found:
            continue
        begun = _read(place, name, form)
        if any(getattr(begun, key) != value for key, value in wanted.items()):
            raise ValueError(
                f"--out {place.shown}: holds shards of other data ('{begun.dataset}', fingerprint {begun.fingerprint}, "
                f"here '{dataset.name}', {dataset.fingerprint}); name a new or empty folder"
            )
        if isinstance(begun, Begun):
            return begun
        if UNFINISHED in found:  # killed in the last moment
            place.delete(UNFINISHED)
        return None
    others = sorted(found) or (_sub_folders(place) if place.is_local else [])
    if others:
        raise ValueError(f"--out {place.shown}: is not empty (it holds {others[0]}); name a new or empty folder")
    num_images = sum(len(dataset.split(split)) for split in SPLITS)
    plan = Begun(**wanted, num_shards=max(1, min(num_shards or SHARDS_PER_CPU * num_cpus(), num_images)))
    with place.writing(UNFINISHED) as stream:
        stream.write(plan.model_dump_json(indent=2).encode())
    return plan


def _sub_folders(place: Place) -> list[str]:
    path = Path(place.path)
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _read(place: Place, name: str, form: type[Form]) -> Form:
    try:
        return form.model_validate(json.loads(place.read(name)))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ValueError(
            f"--out {place.shown}: {name} is damaged ({what_is_wrong(error)}); delete the folder and type the command again"
        ) from None


def _check_room(place: Place, rows: AllRows, names: list[str], bounds: list[int]) -> None:
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


def _finished_shard(place: Place, name: str, rows: AllRows, span: range) -> tuple[pa.Table, dict[str, Any]] | None:
    """What is in a shard that an earlier attempt wrote; None if it is not there, not whole, or of other images."""
    if not place.has(name):
        return None
    try:
        index, shard = describe_shard(place, name)
    except ValueError:
        return None
    same = index["image_id"].to_pylist() == [rows.image_id(number) for number in span]
    return (index, shard) if same and index["length"].to_pylist() == [rows.size(n) for n in span] else None


def _constant(value: int, length: int) -> Any:
    import pyarrow as pa

    return pa.array(np.full(length, value, np.int32))


def _finish(
    place: Place,
    dataset: Dataset,
    plan: Begun,
    tables: list[pa.Table],
    shards: list[dict[str, Any]],
    image_size: int,
) -> None:
    """Index, then manifest: what is read is complete.

    Raises:
        ValueError: if the shards' fingerprint is not the files'.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, index = pa.BufferOutputStream(), pa.concat_tables(tables)
    pq.write_table(index, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    manifest = ShardManifest(
        **plan.model_dump(exclude={"num_shards"}),
        partial=dataset.partial,
        preprocessing=PREPROCESSING,
        cut_bottom=getattr(dataset.train.source, "cut_bottom", 0),
        num_images={split: len(dataset.split(split)) for split in SPLITS},
        classes={split: list(dataset.split(split).class_names) for split in SPLITS},
        attribute_names=list(dataset.attribute_names),
        attribute_values=[list(values) for values in dataset.attribute_values],
        index_sha256=hashlib.sha256(content).hexdigest(),
        shards=shards,
    )
    listed, _ = tables_of(index, manifest, place.shown)
    if dataset_fingerprint(listed, image_size) != dataset.fingerprint:
        raise ValueError(
            f"--out {place.shown}: the images were changed while they were prepared; delete the folder and type the command again"
        )
    for name, text in ((INDEX, content), (MANIFEST, manifest.model_dump_json(indent=2).encode())):
        with place.writing(name) as stream:
            stream.write(text)
    place.delete(UNFINISHED)
