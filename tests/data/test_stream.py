"""From plan to pixels: order, replacement of broken images, the reading thread."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from saga_ray.config import DataConfig
from saga_ray.data.files.folder import folder_dataset
from saga_ray.data.pixels.images import BrokenImageError, augment, augmentation_keys
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import BrokenImages, decode_plan, micro_batches
from saga_ray.types import ImageTable
from tests.data.trees import class_folders, small_config

DATA = DataConfig(
    image_size=16,
    classes_per_batch=4,
    images_per_class=2,
    num_shards=2,
    pairs_per_batch=4,
    shift_pixels=0.1,
    max_broken_share=1.0,
)


class NumberSource:
    """Images that are their row's number; some rows are broken."""

    def __init__(self, broken: set[int] = frozenset(), delay_s: float = 0.0) -> None:
        self.broken, self.delay_s, self.num_loads = broken, delay_s, 0

    def load(self, rows, size):
        self.num_loads += 1
        time.sleep(self.delay_s)
        for row in rows:
            if row in self.broken:
                raise BrokenImageError(f"{row}.jpg", "cut")
        return np.stack([np.full((size, size, 3), row, dtype=np.uint8) for row in rows])


def a_table(source) -> ImageTable:
    labels_N = np.arange(42) % 7
    return ImageTable(tuple(map(str, range(42))), labels_N, tuple("abcdefg"), source)


def assert_equal(a, b) -> None:
    assert (a.index, a.pairs, a.broken) == (b.index, b.pairs, b.broken)
    for name in ("images_NHWC", "labels_N", "rows_N"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_the_stream_is_the_decoded_plan_in_order():
    table = a_table(NumberSource())
    planner = PairPlanner(table.labels_N, DATA, seed=3)
    batches = list(micro_batches(table, planner, DATA, 3, 4, 9))
    assert [batch.index for batch in batches] == [4, 5, 6, 7, 8]
    for batch in batches:
        plan = planner.plan(batch.index)
        assert tuple(batch.rows_N) == plan.rows and batch.pairs == plan.pairs
        np.testing.assert_array_equal(batch.labels_N, table.labels_N[batch.rows_N])
        np.testing.assert_array_equal(batch.images_NHWC[:, 0, 0, 0], batch.rows_N)
        assert_equal(batch, decode_plan(table.source, table.labels_N, plan, DATA, 3))
    assert not reading_threads()


def test_two_ranks_give_the_images_of_one():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, size=(42, 16, 16, 3), dtype=np.uint8)

    class Pictures:
        def load(self, rows, size):
            return pictures[list(rows)]

    table = a_table(Pictures())
    planner = PairPlanner(table.labels_N, DATA, seed=0)
    (whole,) = micro_batches(table, planner, DATA, 0, 5, 6)
    ranks = [next(micro_batches(table, planner, DATA, 0, 5, 6, rank, 2)) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([batch.images_NHWC for batch in ranks]), whole.images_NHWC)
    np.testing.assert_array_equal(np.concatenate([batch.labels_N for batch in ranks]), whole.labels_N)


def test_augmentation_follows_the_config():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, size=(42, 16, 16, 3), dtype=np.uint8)

    class Pictures:
        def load(self, rows, size):
            return pictures[list(rows)]

    table = a_table(Pictures())
    plan = PairPlanner(table.labels_N, DATA, seed=0).plan(1)
    batch = decode_plan(table.source, table.labels_N, plan, DATA, 5)
    keys_N = augmentation_keys(5, 1, np.array(plan.rows))
    np.testing.assert_array_equal(batch.images_NHWC, augment(pictures[list(plan.rows)], keys_N, True, 2))


def test_a_broken_image_is_replaced_by_the_next_of_its_class_that_is_not_in_the_batch():
    labels_N = np.repeat([0, 1, 2, 3], 4)  # rows 0 1 2 3 are class 0
    data = DataConfig(
        image_size=16, classes_per_batch=4, images_per_class=2, num_shards=2, pairs_per_batch=4, flip=False
    )
    planner = PairPlanner(labels_N, data, seed=0)
    plan = planner.plan(0)
    victim = plan.rows[0]
    of_class = [row for row in range(16) if labels_N[row] == labels_N[victim]]
    start = of_class.index(victim)
    expected = next(r for r in of_class[start + 1 :] + of_class[:start] if r not in plan.rows)
    batch = decode_plan(NumberSource({victim}), labels_N, plan, data, 0)
    assert batch.broken == (f"{victim}.jpg",)
    assert tuple(batch.rows_N) == (expected, *plan.rows[1:])
    assert batch.images_NHWC[0, 0, 0, 0] == expected
    assert_equal(batch, decode_plan(NumberSource({victim}), labels_N, plan, data, 0))
    other = decode_plan(NumberSource({victim, expected}), labels_N, plan, data, 0)
    assert len(set(other.rows_N[:2])) == 2 and other.broken == (f"{victim}.jpg", f"{expected}.jpg")


def test_a_class_without_readable_images_stops_with_the_file_named():
    labels_N = np.repeat([0, 1, 2, 3], 4)
    planner = PairPlanner(labels_N, DATA, seed=0)
    table = ImageTable(tuple(map(str, range(16))), labels_N, tuple("abcd"), NumberSource({4, 5, 6, 7}))
    with pytest.raises(BrokenImageError, match=r"[4-7]\.jpg"):
        list(micro_batches(table, planner, DATA, 0, 0, 3))
    assert not reading_threads()


def test_too_many_broken_images_stop_the_run_and_are_named(caplog):
    data = DATA.model_copy(update={"max_broken_share": 0.05})
    table = a_table(NumberSource({1, 8, 20}))  # 3 of 42 are 7 %
    planner = PairPlanner(table.labels_N, data, seed=0)
    with pytest.raises(ValueError, match=r"data\.max_broken_share: 3 of 42 .*\.jpg.*raise data\.max_broken_share"):
        list(micro_batches(table, planner, data, 0, 0, 40))
    assert sorted(record.args[0] for record in caplog.records) == ["1.jpg", "20.jpg", "8.jpg"]
    few = a_table(NumberSource({1, 8}))
    assert len(list(micro_batches(few, planner, data, 0, 0, 40))) == 40


def test_broken_images_are_counted_once_each():
    table = a_table(NumberSource({1}))
    planner = PairPlanner(table.labels_N, DATA, seed=0)
    watch = BrokenImages(42, 1.0)
    for index in range(30):
        watch.add(decode_plan(table.source, table.labels_N, planner.plan(index), DATA, 0))
    assert len(watch) == 1


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_the_reading_thread_ends_when_the_consumer_stops_early(how):
    table = a_table(NumberSource())
    stream = micro_batches(table, PairPlanner(table.labels_N, DATA, seed=0), DATA, 0, 0, 10_000)
    next(stream)
    assert reading_threads()
    if how == "close":
        stream.close()
    elif how == "error":
        with pytest.raises(RuntimeError):
            stream.throw(RuntimeError("consumer failed"))
    del stream
    assert not reading_threads()


def test_reading_ahead_is_bounded():
    source = NumberSource()
    table = a_table(source)
    stream = micro_batches(table, PairPlanner(table.labels_N, DATA, seed=0), DATA, 0, 0, 100, read_ahead=3)
    next(stream)
    time.sleep(0.3)
    assert source.num_loads == 1 + 3
    stream.close()


def test_nothing_is_read_before_the_first_batch_is_asked_for():
    source = NumberSource()
    table = a_table(source)
    micro_batches(table, PairPlanner(table.labels_N, DATA, seed=0), DATA, 0, 0, 100)
    assert source.num_loads == 0 and not reading_threads()


def test_an_empty_range_is_an_empty_stream():
    table = a_table(NumberSource())
    assert list(micro_batches(table, PairPlanner(table.labels_N, DATA, seed=0), DATA, 0, 7, 7)) == []


def test_broken_files_are_replaced_in_training_and_stop_an_evaluation(tmp_path):
    class_folders(tmp_path, {name: 6 for name in "abcdefgh"})
    truncated, page = tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    page.write_text("<!DOCTYPE html><html>Virus scan warning</html>")
    (tmp_path / "h" / "0.jpg").write_bytes(b"")
    data = small_config(tmp_path, max_broken_share=0.2)
    dataset = folder_dataset(data)
    planner = PairPlanner(dataset.train.labels_N, data, seed=0)
    batches = list(micro_batches(dataset.train, planner, data, 0, 0, 12))
    assert {path for batch in batches for path in batch.broken} == {str(truncated), str(page)}
    broken_rows = {dataset.train.image_ids.index(name) for name in ("a/1.jpg", "b/2.jpg")}
    assert not broken_rows & {int(row) for batch in batches for row in batch.rows_N}
    with pytest.raises(BrokenImageError, match=r"h/0\.jpg: cannot be read as an image"):
        dataset.test.source.load(range(len(dataset.test)), 16)
