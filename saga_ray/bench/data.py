"""How fast images become micro-batches: the stream of a run beside torch's DataLoader and beside bare decoding."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_ray.bench.bare import bare_loop
from saga_ray.bench.clock import Contender, Material, Timing, timed
from saga_ray.bench.contenders import SETTINGS, Setting, data_loader, ray_stream
from saga_ray.bench.memory import peak_memory
from saga_ray.bench.photographs import HEIGHT, WIDTH, make_photographs, many_times
from saga_ray.config import DataConfig
from saga_ray.train.progress import Progress, Silent

WARM_UP = 14
"""Micro-batches before the clock starts: with two cores the stream's tasks have their full size then."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    data: DataConfig
    num_classes: int
    images_per_class: int
    num_timed: int
    """Micro-batches on the clock, for each contender and round."""
    num_tried: int
    """The same for each setting of the DataLoader, once."""
    num_rounds: int
    settings: tuple[Setting, ...] = SETTINGS
    """Of the DataLoader, of which the fastest takes part."""
    larger: int = 10
    """The larger table has so many times the files."""


FULL = Size(DataConfig(), num_classes=64, images_per_class=16, num_timed=64, num_tried=24, num_rounds=3)
QUICK = Size(
    DataConfig(image_size=64, classes_per_batch=4, images_per_class=2, num_shards=2, pairs_per_batch=4),
    num_classes=12,
    images_per_class=4,
    num_timed=16,
    num_tried=4,
    num_rounds=1,
    settings=SETTINGS[:1],
)
"""Seconds: shows that all of it works, measures nothing of interest."""


def bench_data(size: Size, progress: Progress | None = None) -> dict[str, Any]:
    """Measure on all cores that this process may use; starts a cluster of its own, or joins the one that is there.

    Contenders take turns, so that what else the machine does meets all of them; a ratio is the median of those of the rounds.

    Returns:
        `ratio_vs_dataloader`, `ratio_vs_decode`, `first_batch_s`, `images_per_s`, `rss_peak_mb`, `seconds` and what was set.
    """
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="saga-ray-bench-") as folder:
        progress.stage("making photographs")
        table = make_photographs(
            Path(folder, "once"), size.num_classes, size.images_per_class, lambda done, of: progress.step(done, of, {})
        )
        material = Material(table, size.data)
        larger = Material(many_times(table, Path(folder, "larger"), size.larger), size.data)
        return _measured(size, material, larger, progress)


def _measured(size: Size, material: Material, larger: Material, progress: Progress) -> dict[str, Any]:
    from saga_ray.on_ray.cluster import available_cores

    num_cores = available_cores()
    tries, loader = _best_loader(size, material, num_cores, progress)
    with contextlib.ExitStack() as stack:
        progress.stage("starting Ray")
        began = time.perf_counter()
        stack.enter_context(_ray())
        ray_start_s = time.perf_counter() - began
        progress.stage("first micro-batches of the stream")
        stream = ray_stream(material, num_cores)
        cold = timed(stream, num_cores + 1)
        with bare_loop(material, num_cores) as bare:
            rounds = _rounds(size, {"decode": bare, "dataloader": loader, "stream": stream}, progress)
        del loader  # its workers end, and are no part of the stream's memory
        peaks = {}
        for name, what in (("1x", material), (f"{size.larger}x", larger)):
            progress.stage(f"memory with {len(what.table)} images")
            with peak_memory() as peak:
                timed(ray_stream(what, num_cores), WARM_UP + size.num_timed)
            peaks[name] = None if peak.mb is None else round(peak.mb, 1)
    return _report(size, material, tries, cold, rounds, peaks, ray_start_s) | {"num_cores": num_cores}


def _best_loader(
    size: Size, material: Material, num_cores: int, progress: Progress
) -> tuple[Mapping[Setting, Timing], Contender]:
    """The fastest of several settings; its workers run by then. All are started before Ray, as they are forked."""
    furthest = WARM_UP + size.num_timed + 2 * num_cores * max(s.prefetch for s in size.settings)
    loaders, tries = {}, {}
    for setting in size.settings:
        progress.stage(f"DataLoader by {setting.item}, prefetch {setting.prefetch}")
        loaders[setting] = data_loader(material, setting, num_cores, furthest)
        tries[setting] = timed(loaders[setting], WARM_UP + 1 + size.num_tried)
    best = min(tries, key=lambda setting: tries[setting].steady_s(WARM_UP))
    return tries, loaders[best]


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    from saga_ray.configure import resolve
    from saga_ray.on_ray.cluster import connect

    # Asks for what a trainer without the MLLM asks for.
    with connect([resolve("demo", method="potential-field")]):
        yield


def _rounds(size: Size, contenders: Mapping[str, Contender], progress: Progress) -> list[dict[str, Timing]]:
    rounds: list[dict[str, Timing]] = []
    names = list(contenders)
    for number in range(size.num_rounds):
        # Whoever comes first differs, so that nobody always follows the same one.
        order = names[number % len(names) :] + names[: number % len(names)]
        found = {}
        for name in order:
            progress.stage(f"round {number + 1} of {size.num_rounds}: {name}")
            found[name] = timed(contenders[name], WARM_UP + 1 + size.num_timed)
        rounds.append(found)
    return rounds


def _report(
    size: Size,
    material: Material,
    tries: Mapping[Setting, Timing],
    cold: Timing,
    rounds: list[dict[str, Timing]],
    peaks: Mapping[str, float | None],
    ray_start_s: float,
) -> dict[str, Any]:
    seconds = {name: [found[name].steady_s(WARM_UP) for found in rounds] for name in rounds[0]}
    ratios = {
        name: statistics.median(other / ours for other, ours in zip(seconds[name], seconds["stream"], strict=True))
        for name in ("dataloader", "decode")
    }
    best = min(tries, key=lambda setting: tries[setting].steady_s(WARM_UP))
    batch = size.data.batch_size
    rates = {name: round(batch / statistics.median(values), 1) for name, values in seconds.items()}
    firsts = {name: [round(found[name].first_s, 3) for found in rounds] for name in rounds[0]}
    return {
        "ratio_vs_dataloader": round(ratios["dataloader"], 3),
        "ratio_vs_decode": round(ratios["decode"], 3),
        "first_batch_s": round(cold.first_s, 3),
        "images_per_s": rates["stream"],
        "rss_peak_mb": dict(peaks),
        "images_per_s_of": rates,
        "first_batch_warm_s": firsts,
        "seconds": {
            "per_micro_batch": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
            "dataloader_tries": {
                f"{s.item}, prefetch {s.prefetch}": round(found.steady_s(WARM_UP), 5) for s, found in tries.items()
            },
            "ray_start": round(ray_start_s, 2),
        },
        "dataloader": {"item": best.item, "prefetch": best.prefetch},
        "images": {
            "files": len(material.table),
            "width": WIDTH,
            "height": HEIGHT,
            "size": size.data.image_size,
            "micro_batch": batch,
        },
    }
