"""The plan as index rows that Ray Data turns into decoded micro-batches, in order, for one training worker."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from saga_ray.config import DataConfig
from saga_ray.data.plan import PairPlanner
from saga_ray.data.stream import BrokenImages, decode_plan
from saga_ray.errors import Refused, marked_refusals
from saga_ray.types import ImagePair, ImageSource, ImageTable, MicroBatch, PairPlan

_ROWS_PER_DATASET = 512
"""Micro-batches whose index rows go to Ray Data at once; each becomes a block of its own, so this bounds the blocks."""
_READ_AHEAD = 8
"""Decoded micro-batches that may wait for the trainer."""


def ray_batches(
    table: ImageTable,
    data: DataConfig,
    seed: int,
    rank: int,
    world_size: int,
    cpus_per_task: float,
    max_tasks: int,
    selector: Mapping[str, str] | None = None,
) -> Callable[[int, int, PairPlanner], Iterator[MicroBatch]]:
    """The stream of `saga_ray.data.stream.micro_batches`, decoded by tasks anywhere in the cluster.

    Function tasks, not a pool of actors: their processes stay warm and nothing is rebuilt when an epoch ends.

    Args:
        max_tasks: Decoding tasks at once.

    Returns:
        `batches(start, stop, planner)`, an iterator over this rank's micro-batches start .. stop - 1.
    """

    def batches(start: int, stop: int, planner: PairPlanner) -> Iterator[MicroBatch]:
        watch = BrokenImages(len(table), data.max_broken_share)
        decode = partial(_decode_rows, source=table.source, labels_N=table.labels_N, data=data, seed=seed)
        for first in range(start, stop, _ROWS_PER_DATASET):
            plans = [planner.plan(i, rank, world_size) for i in range(first, min(stop, first + _ROWS_PER_DATASET))]
            yield from _decoded(plans, _stream(plans, decode, data, cpus_per_task, max_tasks, selector), watch)

    return batches


def _stream(
    plans: Sequence[PairPlan],
    decode: Callable[[Mapping[str, np.ndarray]], dict[str, Any]],
    data: DataConfig,
    cpus_per_task: float,
    max_tasks: int,
    selector: Mapping[str, str] | None,
) -> Generator[Mapping[str, np.ndarray]]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Otherwise a broken image's sentence is lost in a wrapper that does not survive the way to the trainer.
    context.raise_original_map_exception = True
    options = context.execution_options
    options.preserve_order = True
    batch_bytes = len(plans[0].rows) * data.image_size**2 * 3
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=max(256e6, 4.0 * _READ_AHEAD * batch_bytes)
    )
    decoded = ray.data.from_arrow([plan_table([plan]) for plan in plans]).map_batches(
        decode, batch_size=1, num_cpus=cpus_per_task, concurrency=max_tasks, label_selector=dict(selector or {}) or None
    )
    return iter(decoded.iter_batches(batch_size=1, prefetch_batches=1))


def _decoded(
    plans: Sequence[PairPlan], rows: Generator[Mapping[str, np.ndarray]], watch: BrokenImages
) -> Iterator[MicroBatch]:
    # Closing lets Ray Data stop what it decodes ahead, when a run ends before its last possible micro-batch.
    with contextlib.closing(rows):
        for plan in plans:
            row = _next(rows)
            batch = MicroBatch(
                index=int(row["index"][0]),
                # Ray hands out read-only views of its store; training code may write into its batch.
                images_NHWC=np.array(row["images"][0]),
                labels_N=np.array(row["labels"][0]),
                rows_N=np.array(row["rows"][0]),
                pairs=plan.pairs,
                broken=tuple(json.loads(str(row["broken"][0]))),
            )
            assert batch.index == plan.index, f"micro-batch {batch.index} came where {plan.index} was due"
            watch.add(batch)
            yield batch


def _next(rows: Iterator[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    try:
        return next(rows)
    except RayError as error:
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(cause, Refused):
            raise ValueError(str(cause)) from None
        raise


def plan_table(plans: Sequence[PairPlan]) -> pa.Table:
    """Rows of the plan as Arrow: all that a decoding task is told."""
    return pa.table(
        {
            "index": pa.array([plan.index for plan in plans], pa.int64()),
            "rows": pa.array([list(plan.rows) for plan in plans], pa.list_(pa.int64())),
            "pairs": pa.array(
                [[[p.first, p.second, int(p.same_class), p.number] for p in plan.pairs] for plan in plans],
                pa.list_(pa.list_(pa.int64(), 4)),
            ),
        }
    )


def _decode_rows(
    batch: Mapping[str, np.ndarray], source: ImageSource, labels_N: np.ndarray, data: DataConfig, seed: int
) -> dict[str, Any]:
    """One block of index rows to one block of decoded micro-batches; runs in a task, which never imports torch."""
    decoded = []
    for index, rows, pairs in zip(batch["index"], batch["rows"], batch["pairs"], strict=True):
        shown = tuple(ImagePair(int(a), int(b), bool(same), int(number)) for a, b, same, number in pairs)
        plan = PairPlan(index=int(index), rows=tuple(int(row) for row in rows), pairs=shown)
        with marked_refusals():
            decoded.append(decode_plan(source, labels_N, plan, data, seed))
    return {
        "index": np.array([d.index for d in decoded], dtype=np.int64),
        "images": np.stack([d.images_NHWC for d in decoded]),
        "labels": np.stack([d.labels_N for d in decoded]),
        "rows": np.stack([d.rows_N for d in decoded]),
        "broken": np.array([json.dumps(d.broken) for d in decoded]),
    }
