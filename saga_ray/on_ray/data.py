"""The plan as index rows that Ray Data turns into decoded micro-batches, in order, for one training worker.

Ray Data spends some 20 ms of a core on every task, so a task decodes several micro-batches, whole ones; the first tasks
fewer, so that training begins soon. Pixels go from the decoder into shared memory and from there into the batch: one copy each.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from saga_ray.config import DataConfig
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import BrokenImages, decode_plan
from saga_ray.errors import Refused, marked_refusals
from saga_ray.on_ray.shared import Work, fetched
from saga_ray.types import ImageTable, MicroBatch, PairPlan

_FIRST_SEGMENT, _SEGMENT = 64, 512
"""Micro-batches whose index rows go to Ray Data at once: few at first, since they are planned before anything is decoded."""
_MAX_PER_TASK = 8
_THREAD_S = 30.0
"""Seconds that a thread of Ray Data has to end in; one that hangs is left behind."""

Rows = Generator[tuple[int, np.ndarray, np.ndarray, list[str]]]
"""Index, images_NHWC (read-only), rows_N and broken files of one micro-batch after the other."""
Segment = tuple[Sequence[PairPlan], Any, Rows]
"""Plans of one execution of Ray Data, the first of its rows, and the others."""


@dataclass(frozen=True)
class Decoding:
    """What one training worker's stream may take."""

    cpus_per_task: float
    max_tasks: int
    """Decoding tasks at once."""
    read_ahead_bytes: float = 256e6
    """Decoded micro-batches on their way, in the object store; two of each task are always allowed."""
    selector: Mapping[str, str] | None = None
    """Labels of the nodes that decode."""

    def per_task(self, batch_bytes: int) -> int:
        """Micro-batches that a task decodes: while all tasks fill one block, as many blocks and two more may wait."""
        return max(1, min(_MAX_PER_TASK, int(self.read_ahead_bytes / ((2 * self.max_tasks + 2) * batch_bytes))))

    def blocks(self, plans: Sequence[PairPlan], batch_bytes: int, is_first: bool) -> list[Sequence[PairPlan]]:
        """Plans of each task, in order; at the start of a stream 1, then 2, 4, ... for each task."""
        largest = self.per_task(batch_bytes)
        size, blocks, start = 1 if is_first else largest, [], 0
        while start < len(plans):
            blocks.append(plans[start : start + size])
            start += size
            if len(blocks) % self.max_tasks == 0:
                size = min(2 * size, largest)
        return blocks


def ray_batches(
    table: ImageTable, data: DataConfig, seed: int, rank: int, world_size: int, decoding: Decoding
) -> Callable[[int, int, PairPlanner], Iterator[MicroBatch]]:
    """The stream of `saga_ray.data.planning.stream.micro_batches`, decoded by tasks anywhere in the cluster.

    Function tasks, not a pool of actors: their processes stay warm, and nothing is rebuilt when an epoch ends.

    Returns:
        `batches(start, stop, planner)`, an iterator over this rank's micro-batches start .. stop - 1.
    """

    def batches(start: int, stop: int, planner: PairPlanner) -> Iterator[MicroBatch]:
        watch = BrokenImages(len(table), data.max_broken_share)
        work = Work(table.source, np.asarray(table.labels_N), data, seed).share()

        def open_segment(first: int, last: int) -> Segment:
            plans = [planner.plan(i, rank, world_size) for i in range(first, last)]
            rows = _decoded(plans, work, data, decoding, is_first=first == start)
            return plans, next(rows), rows  # Ray Data starts when it is asked for a row

        # Closing lets Ray Data stop what it decodes ahead, when a run ends before its last possible micro-batch.
        with contextlib.closing(_joined(_segments(start, stop), open_segment)) as found:
            for plan, (index, images_NHWC, rows_N, broken) in found:
                assert index == plan.index, f"micro-batch {index} came where {plan.index} was due"
                labels_N = np.asarray(table.labels_N)[rows_N]
                # Ray hands out read-only views of its store; training code may write into its batch.
                batch = MicroBatch(index, np.array(images_NHWC), labels_N, rows_N, plan.pairs, tuple(broken))
                watch.add(batch)
                yield batch

    return batches


def _segments(start: int, stop: int) -> Iterator[tuple[int, int]]:
    size = _FIRST_SEGMENT
    while start < stop:
        yield start, min(stop, start + size)
        start, size = start + size, _SEGMENT


def _joined(
    segments: Iterator[tuple[int, int]], open_segment: Callable[[int, int], Segment]
) -> Generator[tuple[PairPlan, Any]]:
    """Rows of all segments; the next one begins while the last micro-batches of the one before are on their way."""
    coming: Future | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="next-segment") as opener:

        def begin_next() -> Future | None:
            bounds = next(segments, None)
            return None if bounds is None else opener.submit(open_segment, *bounds)

        try:
            coming = begin_next()
            while coming is not None:
                (plans, first, rows), coming = coming.result(), None
                with contextlib.closing(rows):
                    number = 0
                    for plan, row in zip(plans, itertools.chain([first], rows), strict=False):
                        yield plan, row
                        number += 1
                        if number == max(1, len(plans) - _MAX_PER_TASK):
                            coming = begin_next()
                    if number != len(plans):
                        raise RuntimeError(
                            f"Ray Data gave {number} of {len(plans)} micro-batches from {plans[0].index} on"
                        )
        finally:
            if coming is not None:
                with contextlib.suppress(Exception):  # nobody waits for these any more
                    coming.result()[2].close()


def _decoded(
    plans: Sequence[PairPlan], work: ray.ObjectRef, data: DataConfig, decoding: Decoding, is_first: bool
) -> Rows:
    threads: list[threading.Thread] = []
    try:
        yield from _rows_of_one_execution(plans, work, data, decoding, is_first, threads)
    finally:
        # They may still wait for a block when their consumer has left; Ray ends a process that asks it for one after
        # `ray.shutdown`. Nothing of the execution is referenced here, so that it ends as well.
        for thread in threads:
            thread.join(_THREAD_S)


def _rows_of_one_execution(
    plans: Sequence[PairPlan],
    work: ray.ObjectRef,
    data: DataConfig,
    decoding: Decoding,
    is_first: bool,
    threads: list[threading.Thread],
) -> Rows:
    """Rows of the plans; the threads that Ray Data starts for them are added to `threads`."""
    batch_bytes = len(plans[0].rows) * data.image_size**2 * 3
    before = set(threading.enumerate())
    _prepare_context(max(decoding.read_ahead_bytes, 2.0 * decoding.max_tasks * batch_bytes))
    blocks = decoding.blocks(plans, batch_bytes, is_first)
    decoded = ray.data.from_arrow([plan_table(block) for block in blocks]).map_batches(
        partial(_decode_block, work=work),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=decoding.cpus_per_task,
        compute=ray.data.TaskPoolStrategy(size=decoding.max_tasks),
        label_selector=dict(decoding.selector or {}) or None,
    )
    # Ray Data sets up its log when it makes a data set.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shape = (-1, data.image_size, data.image_size, 3)
    with _own_sentences():
        for block in decoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            if not threads:  # no other execution of this process starts meanwhile
                threads += [thread for thread in threading.enumerate() if _reads(thread) and thread not in before]
            for row in range(len(block)):
                images_NHWC = np.frombuffer(block["images"][row].as_buffer(), np.uint8).reshape(shape)
                rows_N = np.array(block["rows"][row].as_py(), np.int64)
                yield block["index"][row].as_py(), images_NHWC, rows_N, block["broken"][row].as_py()


def _reads(thread: threading.Thread) -> bool:
    """True for threads of Ray Data that ask for blocks; its `Prefetcher` sleeps when nobody tells it of any."""
    return thread.name.startswith(("iter_threaded", "StreamingExecutor-", "ray-data-metadata-prefetch"))


def _prepare_context(object_store_bytes: float) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Otherwise a broken image's sentence is lost in a wrapper that does not survive the way to the trainer.
    context.raise_original_map_exception = True
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(object_store_memory=object_store_bytes)


@contextlib.contextmanager
def _own_sentences() -> Iterator[None]:
    """Raise what a decoding task refused as the sentence that it is."""
    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(cause, Refused):
            # Ray Data adds lines of its own about retries.
            raise ValueError(str(cause).splitlines()[0]) from None
        raise


def plan_table(plans: Sequence[PairPlan]) -> pa.Table:
    """Rows of the plan as Arrow: what a decoding task is told of each."""
    return pa.table(
        {
            "index": pa.array([plan.index for plan in plans], pa.int64()),
            "rows": pa.array([plan.rows for plan in plans], pa.list_(pa.int64())),
        }
    )


def _decode_block(block: pa.Table, work: ray.ObjectRef) -> pa.Table:
    """Index rows to decoded micro-batches; runs in a task, which never imports torch."""
    told = fetched(work)
    decoded = []
    for index, rows in zip(block["index"].to_pylist(), block["rows"].to_pylist(), strict=True):
        plan = PairPlan(index, tuple(rows), pairs=())
        with marked_refusals():
            decoded.append(decode_plan(told.source, told.labels_N, plan, told.data, told.seed))
    return pa.table(
        {
            "index": pa.array([batch.index for batch in decoded], pa.int64()),
            "images": pa.chunked_array([_as_binary(batch.images_NHWC) for batch in decoded]),
            "rows": pa.array([batch.rows_N for batch in decoded], pa.list_(pa.int64())),
            "broken": pa.array([list(batch.broken) for batch in decoded], pa.list_(pa.string())),
        }
    )


def _as_binary(images_NHWC: np.ndarray) -> pa.Array:
    """One value that holds all bytes of an array, without a copy."""
    ends = np.array([0, images_NHWC.nbytes], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(images_NHWC))]
    return pa.Array.from_buffers(pa.large_binary(), 1, buffers)
