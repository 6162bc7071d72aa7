"""The bench of the stream: its pictures, its clock, its contenders, its memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_ray.bench.bare import bare_loop
from saga_ray.bench.clock import Material, Timing, timed
from saga_ray.bench.contenders import SETTINGS, Images, MicroBatches, data_loader
from saga_ray.bench.data import QUICK, _rounds, bench_data
from saga_ray.bench.memory import descendants, memory_mb, peak_memory
from saga_ray.bench.photographs import make_photographs, many_times
from saga_ray.data.planning.stream import micro_batches
from saga_ray.train.progress import Silent


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(make_photographs(tmp_path_factory.mktemp("photographs"), 6, 3), QUICK.data)


def test_photographs_are_jpegs_of_the_usual_size_that_differ(material: Material) -> None:
    table = material.table
    assert len(table) == 18 and np.bincount(table.labels_N).tolist() == [3] * 6
    with Image.open(table.source.path(4)) as image:
        assert image.format == "JPEG" and image.size == (500, 375)
    sizes = {table.source.path(row).stat().st_size for row in range(18)}
    assert len(sizes) == 18 and min(sizes) > 20_000


def test_the_larger_table_has_files_and_classes_of_its_own(material: Material, tmp_path: Path) -> None:
    larger = many_times(material.table, tmp_path, 3)
    assert len(larger) == len(set(larger.image_ids)) == 54 and len(larger.class_names) == 18
    pixels_NHWC = material.table.source.load(range(18), 16)
    np.testing.assert_array_equal(larger.source.load(range(54), 16), np.concatenate([pixels_NHWC] * 3))


def test_seconds_per_micro_batch_are_those_between_two_arrivals() -> None:
    timing = Timing((5.0, 5.5, 6.0, 8.0, 10.0))
    assert timing.first_s == 5.0
    assert timing.steady_s(2) == 2.0 and timing.steady_s(0) == 1.25


def test_the_clock_stops_with_the_last_one_asked_for_and_the_stream_is_closed() -> None:
    closed = []

    def endless(num: int) -> Iterator[int]:
        try:
            while True:
                time.sleep(0.01)
                yield num
        finally:
            closed.append(True)

    timing = timed(endless, 3)
    assert len(timing.arrivals_s) == 3 and timing.arrivals_s[0] >= 0.01 and closed == [True]


def test_a_slow_machine_takes_fewer_rounds_and_contenders_take_turns() -> None:
    asked: list[str] = []

    def contender(name: str):
        def stream(num: int) -> Iterator[int]:
            asked.append(name)
            yield from range(num)

        return stream

    contenders = {name: contender(name) for name in "abc"}
    size = dataclasses.replace(QUICK, num_rounds=3)
    assert len(_rounds(size, contenders, Silent(), time.monotonic() + 60)) == 3
    assert asked == list("abcbcacab")
    assert len(_rounds(size, contenders, Silent(), time.monotonic() - 1)) == 1


def test_both_loaders_give_what_the_stream_gives(material: Material) -> None:
    expected = list(micro_batches(material.table, material.planner(), material.data, 0, 0, 3))
    whole, single = MicroBatches(material, 3), Images(material)
    for batch in expected:
        images_NHWC, labels_N = whole[batch.index]
        np.testing.assert_array_equal(images_NHWC.numpy(), batch.images_NHWC)
        np.testing.assert_array_equal(labels_N.numpy(), batch.labels_N)
        for place, row in enumerate(material.planner().plan(batch.index).rows):
            image_HWC, label = single[batch.index, row]
            np.testing.assert_array_equal(image_HWC.numpy(), batch.images_NHWC[place])
            assert label == batch.labels_N[place]


@pytest.mark.parametrize("setting", SETTINGS[::2], ids=lambda setting: setting.item)
def test_a_loader_can_be_left_and_begun_again_with_the_same_workers(setting, material: Material) -> None:
    expected = list(micro_batches(material.table, material.planner(), material.data, 0, 0, 4))
    loader = data_loader(material, setting, 1, 12)
    timed(loader, 2)
    workers = set(descendants(os.getpid()))
    for batch, (images_NHWC, labels_N) in zip(expected, loader(4), strict=False):
        np.testing.assert_array_equal(images_NHWC.numpy(), batch.images_NHWC)
        np.testing.assert_array_equal(labels_N.numpy(), batch.labels_N)
    assert set(descendants(os.getpid())) <= workers


def test_the_bare_loop_decodes_in_processes_of_its_own(material: Material) -> None:
    with bare_loop(material, 1) as bare:
        assert list(bare(3)) == [8, 8, 8]
        assert len(timed(bare, 2).arrivals_s) == 2


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_of_children_counts_while_they_live() -> None:
    before = memory_mb()
    with peak_memory() as peak:
        code = "x = bytearray(80_000_000); print('ready', flush=True); input()"
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        assert child.pid in descendants(os.getpid())
        assert memory_mb(child.pid) > 76
        assert memory_mb() > before + 70
        deadline = time.monotonic() + 60
        while (peak.mb is None or peak.mb < before + 70) and time.monotonic() < deadline:
            time.sleep(0.05)  # a look at all processes takes as long as there are many
        child.communicate("\n", timeout=60)
    assert peak.mb > before + 70


@pytest.mark.slow
def test_the_bench_says_what_it_promises() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ID")}
    done = subprocess.run(
        [sys.executable, "-m", "saga_ray", "bench", "data", "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=550,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for key in ("ratio_vs_dataloader", "ratio_vs_decode", "first_batch_s", "images_per_s"):
        assert report[key] > 0
    assert set(report["rss_peak_mb"]) == {"1x", "10x"}
    seconds = report["seconds"]["per_micro_batch"]
    ratio = seconds["dataloader"][0] / seconds["stream"][0]
    assert report["ratio_vs_dataloader"] == pytest.approx(ratio, rel=0.02)


def test_the_whole_bench_with_the_stream_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def local(material: Material, num_cores: int):
        return lambda num: micro_batches(material.table, material.planner(), material.data, 0, 0, num + 8)

    monkeypatch.setattr("saga_ray.bench.data.ray_stream", local)
    monkeypatch.setattr("saga_ray.bench.data._ray", contextlib.nullcontext)
    report = bench_data(dataclasses.replace(QUICK, num_timed=4, num_tried=1))
    seconds = report["seconds"]["per_micro_batch"]
    assert report["ratio_vs_decode"] == pytest.approx(seconds["decode"][0] / seconds["stream"][0], rel=0.02)
    assert report["draft"]["ratio_vs_dataloader"] > 0 and set(report["rss_peak_mb"]) == {"1x", "10x"}
    json.dumps(report, allow_nan=False)
