"""How fast images become micro-batches: the stream of a run beside torch's DataLoader and beside bare decoding."""

from __future__ import annotations

import contextlib
import dataclasses
import math
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
from saga_ray.bench.photographs import LARGE, USUAL, make_photographs, many_times
from saga_ray.config import DataConfig
from saga_ray.data.pixels.draft import drafted_table
from saga_ray.train.progress import Progress, Silent

WARM_UP = 14
"""Micro-batches before the clock starts: with two cores the stream's tasks have their full size then."""
_LOADER_WARM_UP = 4
"""A DataLoader is in full swing sooner."""


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
    """Fewer, if the machine is so slow that `max_s` would pass; never less than one."""
    max_s: float = 420.0
    """Seconds after which no further round begins."""
    settings: tuple[Setting, ...] = SETTINGS
    """Of the DataLoader, of which the fastest takes part."""
    num_large_classes: int = 16
    """Of four large photographs each, for decoding in draft."""
    larger: int = 10
    """The larger table has so many times the files."""


FULL = Size(DataConfig(), num_classes=64, images_per_class=16, num_timed=48, num_tried=24, num_rounds=3)
QUICK = Size(
    DataConfig(image_size=64, classes_per_batch=4, images_per_class=2, num_shards=2, pairs_per_batch=4),
    num_classes=12,
    images_per_class=4,
    num_timed=16,
    num_tried=4,
    num_rounds=1,
    num_large_classes=8,
    settings=SETTINGS[:1],
)
"""Seconds: shows that all of it works, measures nothing of interest."""


def bench_data(size: Size, progress: Progress | None = None) -> dict[str, Any]:
    """Measure on all cores that this process may use; starts a cluster of its own, or joins the one that is there.

    Contenders take turns, so that what else the machine does meets all of them; a ratio is the median of those of the rounds.

    Returns:
        `ratio_vs_dataloader`, `ratio_vs_decode`, `first_batch_s`, `images_per_s`, `rss_peak_mb` (of this process, Ray's and their
        children, while a stream reads as many images as the larger table has, once from either table), `seconds`, `draft` (large
        photographs: the stream with `data.decode=draft` beside a DataLoader, which knows no such thing) and what was set.
    """
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="saga-ray-bench-") as folder:
        progress.stage("making photographs")
        table = make_photographs(
            Path(folder, "once"), size.num_classes, size.images_per_class, USUAL, lambda a, b: progress.step(a, b, {})
        )
        material = Material(table, size.data)
        more = Material(many_times(table, Path(folder, "more"), size.larger), size.data)
        large = Material(make_photographs(Path(folder, "large"), size.num_large_classes, 4, LARGE), size.data)
        return _measured(size, material, more, large, progress)


def _measured(size: Size, material: Material, more: Material, large: Material, progress: Progress) -> dict[str, Any]:
    from saga_ray.machine import num_cpus

    num_cores, latest = num_cpus(), time.monotonic() + size.max_s
    tries, loader = _best_loader(size, material, num_cores, progress)
    progress.stage("DataLoader with large photographs")
    large_loader = data_loader(large, _best(tries), num_cores, _furthest(size, num_cores))
    timed(large_loader, num_cores)
    with contextlib.ExitStack() as stack:
        progress.stage("starting Ray")
        began = time.perf_counter()
        stack.enter_context(_ray())
        ray_start_s = time.perf_counter() - began
        progress.stage("first micro-batches of the stream")
        stream = ray_stream(material, num_cores)
        cold = timed(stream, num_cores + 1)
        with bare_loop(material, num_cores) as bare:
            rounds = _rounds(size, {"decode": bare, "dataloader": loader, "stream": stream}, progress, latest)
        draft = Material(drafted_table(large.table), large.data)
        in_draft = {"dataloader": large_loader, "stream": ray_stream(draft, num_cores)}
        draft_rounds = _rounds(
            dataclasses.replace(size, num_rounds=1), in_draft, progress, latest, " (large, in draft)"
        )
        del loader, large_loader, in_draft  # their workers end, and are no part of the stream's memory
        peaks, once = {}, math.ceil(len(more.table) / size.data.batch_size)
        for name, what in (("1x", material), (f"{size.larger}x", more)):
            progress.stage(f"memory with {len(what.table)} images, {once} micro-batches")
            with peak_memory() as peak:
                timed(ray_stream(what, num_cores), once)
            peaks[name] = None if peak.mb is None else round(peak.mb, 1)
    report = _report(size, material, tries, cold, rounds, peaks, ray_start_s)
    return report | _draft_report(draft_rounds, size) | {"num_cores": num_cores}


def _best_loader(
    size: Size, material: Material, num_cores: int, progress: Progress
) -> tuple[Mapping[Setting, Timing], Contender]:
    """The fastest of several settings; its workers run by then. All are started before Ray, as they are forked."""
    loaders, tries = {}, {}
    for setting in size.settings:
        progress.stage(f"DataLoader by {setting.item}, prefetch {setting.prefetch}")
        loaders[setting] = data_loader(material, setting, num_cores, _furthest(size, num_cores))
        tries[setting] = timed(loaders[setting], _LOADER_WARM_UP + 1 + size.num_tried)
    return tries, loaders[_best(tries)]


def _best(tries: Mapping[Setting, Timing]) -> Setting:
    return min(tries, key=lambda setting: tries[setting].steady_s(_LOADER_WARM_UP))


def _furthest(size: Size, num_cores: int) -> int:
    """Micro-batches that a loader has: more than are taken, as in a run."""
    return WARM_UP + size.num_timed + 2 * num_cores * max(s.prefetch for s in size.settings)


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    from saga_ray.configure import resolve
    from saga_ray.on_ray.cluster import connect

    # Asks for what a trainer without the MLLM asks for.
    with connect([resolve("demo", method="potential-field")]):
        yield


def _rounds(
    size: Size, contenders: Mapping[str, Contender], progress: Progress, latest: float, remark: str = ""
) -> list[dict[str, Timing]]:
    """Turns of all contenders; a round that would end after `latest` is left out, but for the first."""
    rounds: list[dict[str, Timing]] = []
    names = list(contenders)
    for number in range(size.num_rounds):
        began = time.monotonic()
        # Whoever comes first differs, so that nobody always follows the same one.
        order = names[number % len(names) :] + names[: number % len(names)]
        found = {}
        for name in order:
            progress.stage(f"round {number + 1} of {size.num_rounds}: {name}{remark}")
            found[name] = timed(contenders[name], WARM_UP + 1 + size.num_timed)
        rounds.append(found)
        if 2 * time.monotonic() - began > latest:
            break
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
    seconds = _seconds(rounds)
    best = _best(tries)
    batch = size.data.batch_size
    rates = {name: round(batch / statistics.median(values), 1) for name, values in seconds.items()}
    firsts = {name: [round(found[name].first_s, 3) for found in rounds] for name in rounds[0]}
    return {
        "ratio_vs_dataloader": _ratio(seconds, "dataloader"),
        "ratio_vs_decode": _ratio(seconds, "decode"),
        "first_batch_s": round(cold.first_s, 3),
        "images_per_s": rates["stream"],
        "rss_peak_mb": dict(peaks),
        "images_per_s_of": rates,
        "first_batch_warm_s": firsts,
        "seconds": {
            "per_micro_batch": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
            "dataloader_tries": {
                f"{s.item}, prefetch {s.prefetch}": round(found.steady_s(_LOADER_WARM_UP), 5)
                for s, found in tries.items()
            },
            "ray_start": round(ray_start_s, 2),
        },
        "dataloader": {"item": best.item, "prefetch": best.prefetch},
        "images": {
            "files": len(material.table),
            "width": USUAL[0],
            "height": USUAL[1],
            "size": size.data.image_size,
            "micro_batch": batch,
        },
    }


def _draft_report(rounds: list[dict[str, Timing]], size: Size) -> dict[str, Any]:
    seconds = _seconds(rounds)
    return {
        "draft": {
            "ratio_vs_dataloader": _ratio(seconds, "dataloader"),
            "images_per_s": round(size.data.batch_size / statistics.median(seconds["stream"]), 1),
            "per_micro_batch": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
            "width": LARGE[0],
            "height": LARGE[1],
        }
    }


def _seconds(rounds: list[dict[str, Timing]]) -> dict[str, list[float]]:
    return {name: [found[name].steady_s(WARM_UP) for found in rounds] for name in rounds[0]}


def _ratio(seconds: Mapping[str, list[float]], other: str) -> float:
    pairs = zip(seconds[other], seconds["stream"], strict=True)
    return round(statistics.median(theirs / ours for theirs, ours in pairs), 3)
