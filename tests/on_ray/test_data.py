"""Micro-batches through Ray Data against the stream of one process."""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from saga_ray.config import RunConfig
from saga_ray.data import load_dataset
from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import micro_batches
from saga_ray.errors import is_ours
from saga_ray.on_ray.data import Decoding, _joined, _reads, ray_batches
from saga_ray.types import ImageSource, ImageTable, MicroBatch, PairPlan


def _assert_equal(here: MicroBatch, there: MicroBatch) -> None:
    assert (here.index, here.pairs, here.broken) == (there.index, there.pairs, there.broken)
    for name in ("images_NHWC", "labels_N", "rows_N"):
        one, other = getattr(here, name), getattr(there, name)
        assert one.dtype == other.dtype and np.array_equal(one, other), name
    assert there.images_NHWC.flags.writeable


@dataclass(frozen=True)
class Watched:
    """A source that fails where torch was imported, and for one row."""

    source: ImageSource
    broken_row: int

    def load(self, rows: list[int], size: int) -> np.ndarray:
        import sys

        assert "torch" not in sys.modules or "pytest" in sys.modules, "a decoding task imported torch"
        if self.broken_row in rows:
            raise BrokenImageError(f"/images/{self.broken_row}.png", "is cut short")
        return self.source.load(rows, size)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_gets_the_micro_batches_of_the_local_stream_in_order(
    ray_cluster: None, small_config: RunConfig, world_size: int
) -> None:
    data, table = small_config.data, load_dataset(small_config).train
    watched = ImageTable(table.image_ids, table.labels_N, table.class_names, Watched(table.source, -1))
    planner = PairPlanner(table.labels_N, data, 5, None)
    for rank in range(world_size):
        here = list(micro_batches(table, planner, data, 5, 3, 12, rank, world_size))
        there = list(ray_batches(watched, data, 5, rank, world_size, Decoding(0.25, 2))(3, 12, planner))
        assert [batch.index for batch in there] == list(range(3, 12))
        for one, other in zip(here, there, strict=True):
            _assert_equal(one, other)


def test_a_stream_may_be_left_before_its_end(ray_cluster: None, small_config: RunConfig) -> None:
    data, table = small_config.data, load_dataset(small_config).train
    planner = PairPlanner(table.labels_N, data, 0, None)
    for start in (0, 40):
        stream = ray_batches(table, data, 0, 0, 1, Decoding(0.25, 2))(start, 5000, planner)
        assert next(stream).index == start
        assert any(map(_reads, threading.enumerate()))
        stream.close()
        # Ray would end this process if one of them asked it for a block after `ray.shutdown`.
        assert not [thread.name for thread in threading.enumerate() if _reads(thread)]


def test_broken_images_are_replaced_and_counted_as_in_one_process(ray_cluster: None, small_config: RunConfig) -> None:
    data = small_config.data.model_copy(update={"max_broken_share": 0.5})
    table = load_dataset(small_config).train
    planner = PairPlanner(table.labels_N, data, 0, None)
    row = planner.plan(2).rows[0]
    broken = ImageTable(table.image_ids, table.labels_N, table.class_names, Watched(table.source, row))
    here = list(micro_batches(broken, planner, data, 0, 0, 4))
    there = list(ray_batches(broken, data, 0, 0, 1, Decoding(0.25, 2))(0, 4, planner))
    assert here[2].broken == (f"/images/{row}.png",)
    for one, other in zip(here, there, strict=True):
        _assert_equal(one, other)
    with pytest.raises(ValueError, match=r"data\.max_broken_share"):
        list(ray_batches(broken, small_config.data, 0, 0, 1, Decoding(0.25, 2))(0, 4, planner))


@dataclass(frozen=True)
class Unreadable:
    """A source of which nothing can be decoded."""

    def load(self, rows: list[int], size: int) -> np.ndarray:
        raise BrokenImageError(f"/images/{rows[0]}.png", "is cut short")


def test_a_class_without_a_readable_image_is_one_sentence(ray_cluster: None, small_config: RunConfig) -> None:
    data, table = small_config.data, load_dataset(small_config).train
    planner = PairPlanner(table.labels_N, data, 0, None)
    broken = ImageTable(table.image_ids, table.labels_N, table.class_names, Unreadable())
    with pytest.raises(ValueError, match=r"^/images/\d+\.png: cannot be read as an image \(is cut short\)[^\n]*$"):
        list(ray_batches(broken, data, 0, 0, 1, Decoding(0.25, 2))(0, 2, planner))


@dataclass(frozen=True)
class Mistaken:
    """A source with a mistake in its code."""

    def load(self, rows: list[int], size: int) -> np.ndarray:
        return np.zeros(3).reshape(2, 2)


def test_a_librarys_error_in_a_decoding_task_is_no_sentence(ray_cluster: None, small_config: RunConfig) -> None:
    data, table = small_config.data, load_dataset(small_config).train
    planner = PairPlanner(table.labels_N, data, 0, None)
    mistaken = ImageTable(table.image_ids, table.labels_N, table.class_names, Mistaken())
    with pytest.raises(Exception, match="cannot reshape") as caught:
        list(ray_batches(mistaken, data, 0, 0, 1, Decoding(0.25, 2))(0, 2, planner))
    assert not is_ours(caught.value)
    assert not [thread.name for thread in threading.enumerate() if _reads(thread)]


def test_executions_follow_each_other_in_order_and_their_processes_stay(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga_ray.on_ray.data._FIRST_SEGMENT", 5)
    monkeypatch.setattr("saga_ray.on_ray.data._SEGMENT", 12)
    data, table = small_config.data, load_dataset(small_config).train
    planner = PairPlanner(table.labels_N, data, 0, None)
    signed = ImageTable(table.image_ids, table.labels_N, table.class_names, Signed(table.source, str(tmp_path)))
    there = list(ray_batches(signed, data, 0, 0, 1, Decoding(0.25, 2))(7, 50, planner))
    for one, other in zip(micro_batches(table, planner, data, 0, 7, 50), there, strict=True):
        _assert_equal(one, other)
    # Five executions; a pool per execution would have been ten processes.
    assert len({file.name.split("-")[0] for file in tmp_path.iterdir()}) <= 4


@dataclass(frozen=True)
class Signed:
    """A source that leaves a file per micro-batch, named by its process."""

    source: ImageSource
    folder: str

    def load(self, rows: list[int], size: int) -> np.ndarray:
        Path(self.folder, f"{os.getpid()}-{uuid.uuid4().hex}").touch()
        return self.source.load(rows, size)


def test_a_trainer_that_takes_its_time_is_not_run_ahead_of(
    ray_cluster: None, small_config: RunConfig, tmp_path: Path
) -> None:
    data = small_config.data
    table = load_dataset(small_config).train
    planner = PairPlanner(table.labels_N, data, 0, None)
    signed = ImageTable(table.image_ids, table.labels_N, table.class_names, Signed(table.source, str(tmp_path)))
    batch_bytes = data.batch_size * data.image_size**2 * 3
    decoding = Decoding(0.25, 2, read_ahead_bytes=12 * batch_bytes)
    stream = ray_batches(signed, data, 0, 0, 1, decoding)(0, 5000, planner)
    next(stream)
    seen = -1
    while seen != (seen := len(list(tmp_path.iterdir()))):
        time.sleep(2)
    stream.close()
    assert seen <= 12 + 2 * 2 * decoding.per_task(batch_bytes)


@pytest.mark.parametrize(("max_tasks", "megabytes"), [(1, 256), (2, 256), (8, 256), (8, 16), (3, 1e6)])
def test_tasks_take_all_plans_in_order_few_at_first_and_no_more_than_the_budget(
    max_tasks: int, megabytes: float
) -> None:
    plans = [PairPlan(index, (), ()) for index in range(100)]
    batch_bytes = 64 * 224**2 * 3
    decoding = Decoding(0.25, max_tasks, megabytes * 1e6)
    blocks = decoding.blocks(plans, batch_bytes, is_first=True)
    assert [plan for block in blocks for plan in block] == plans
    assert [len(block) for block in blocks[:max_tasks]] == [1] * max_tasks
    largest = decoding.per_task(batch_bytes)
    assert max(map(len, blocks)) == largest
    assert largest == 1 or (2 * max_tasks + 2) * largest * batch_bytes <= megabytes * 1e6
    assert [len(block) for block in decoding.blocks(plans, batch_bytes, is_first=False)][:-1] == [largest] * (
        -(-100 // largest) - 1
    )


def test_micro_batches_that_an_execution_lost_are_missed() -> None:
    plans = [PairPlan(index, (), ()) for index in range(20)]

    def rows(num: int):
        yield from range(1, num)

    assert [row for _, row in _joined(iter([(0, 20)]), lambda *_: (plans, 0, rows(20)))] == list(range(20))
    with pytest.raises(RuntimeError, match="gave 18 of 20 micro-batches from 0 on"):
        list(_joined(iter([(0, 20)]), lambda *_: (plans, 0, rows(18))))
