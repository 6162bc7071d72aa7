"""From results to ranked rows: mean over seeds, interval over classes and seeds, paired difference to the best baseline."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from saga_ray.leaderboard.result import Result
from saga_ray.leaderboard.statistics import bootstrap_means, interval95

logger = logging.getLogger(__name__)

BASELINES = ("pretrained", "proxy-anchor", "multi-similarity", "infonce", "potential-field")
"""Methods that others are compared with."""


@dataclass(frozen=True)
class Difference:
    """Mean recall@1 minus that of the best baseline, over the same classes."""

    baseline: str
    """Label of that baseline."""
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class BoardRow:
    """One line of the board. `rank` counts from 1 within the rows that may be compared."""

    rank: int
    method: str
    label: str
    dataset: str
    split: str
    fingerprint: str
    protocol: str
    partial: bool
    backbone: str
    pretraining: str
    frozen: bool
    dim: int
    seeds: tuple[int, ...]
    scores: dict[str, float]
    """Means over the seeds, between 0 and 1."""
    intervals: dict[str, tuple[float, float]]
    """95 % intervals of the scores that are means over queries."""
    difference: Difference | None
    """None for the best baseline itself, and where there is no baseline."""
    num_classes: int
    num_queries: int
    code_versions: tuple[str, ...]
    seconds: float
    """Mean over the seeds, of training and evaluation."""

    def as_json(self) -> dict[str, Any]:
        """Plain values under the names that scripts read."""
        names = ["recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi"]
        names += [name for name in self.scores if name not in names]
        difference = self.difference and {
            "baseline": self.difference.baseline,
            "mean": self.difference.mean,
            "interval": list(self.difference.interval),
        }
        return {
            "rank": self.rank, "method": self.method, "label": self.label,
            **{name: self.scores.get(name) for name in names},
            "interval": list(self.intervals["recall@1"]) if "recall@1" in self.intervals else None,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "difference": difference, "seeds": list(self.seeds), "num_seeds": len(self.seeds),
            "dataset": self.dataset, "split": self.split, "fingerprint": self.fingerprint,
            "protocol": self.protocol, "partial": self.partial,
            "backbone": self.backbone, "pretraining": self.pretraining, "frozen": self.frozen, "dim": self.dim,
            "num_classes": self.num_classes, "num_queries": self.num_queries,
            "code_versions": list(self.code_versions), "seconds": self.seconds,
        }  # fmt: skip


def leaderboard(
    results: Iterable[Result],
    dataset: str | None = None,
    split: str = "test",
    warn: Callable[[str], None] = logger.warning,
) -> list[BoardRow]:
    """Rank results; rows that must not be compared stand in different tables, each with its own ranks.

    A table is what was measured alike: data set, split, protocol, partial, fingerprint, classes. A row is what was tried:
    label, backbone, pre-training, width, config. Seeds of a row are averaged; of two results with the same seed
    (taken by different versions of the code) the later one counts, and `warn` is told.
    """
    tables: dict[Any, list[Result]] = defaultdict(list)
    for result in results:
        if result.split == split and dataset in (None, result.dataset):
            tables[_table(result)].append(result)
    board: list[BoardRow] = []
    for _, members in sorted(tables.items()):
        board += _ranked(members, warn)
    return board


def tables(rows: Sequence[BoardRow]) -> list[list[BoardRow]]:
    """The rows of `leaderboard`, those that may be compared together."""
    starts = [place for place, row in enumerate(rows) if row.rank == 1]
    return [list(rows[start:stop]) for start, stop in pairwise([*starts, len(rows)])]


def _table(result: Result) -> tuple[Any, ...]:
    classes = (result.per_class.names, result.per_class.num_queries)
    return (result.dataset, result.split, result.protocol, result.partial, result.fingerprint, classes)


def _ranked(results: list[Result], warn: Callable[[str], None]) -> list[BoardRow]:
    groups: dict[Any, list[Result]] = defaultdict(list)
    for result in results:
        tried = (result.label, result.method, result.backbone, result.pretraining, result.frozen, result.dim)
        groups[(*tried, result.config_hash)].append(result)
    repeats = [_one_per_seed(group, warn) for _, group in sorted(groups.items())]
    repeats.sort(key=lambda group: [-_mean(group, "recall@1"), -_mean(group, "map@r")])
    draws = [_bootstrap(group) for group in repeats]
    baselines = [place for place, group in enumerate(repeats) if group[0].method in BASELINES]
    best = baselines[0] if baselines else None
    rows = []
    for place, (group, means) in enumerate(zip(repeats, draws, strict=True)):
        difference = None
        if best is not None and place != best and "recall@1" in means and "recall@1" in draws[best]:
            difference = _difference(group, repeats[best])
        rows.append(_row(place + 1, group, means, difference))
    return rows


def _row(rank: int, group: list[Result], means: dict[str, np.ndarray], difference: Difference | None) -> BoardRow:
    first = group[0]
    shared = [name for name in first.scores if all(name in result.scores for result in group)]
    return BoardRow(
        rank=rank,
        method=first.method,
        label=first.label,
        dataset=first.dataset,
        split=first.split,
        fingerprint=first.fingerprint,
        protocol=first.protocol,
        partial=first.partial,
        backbone=first.backbone,
        pretraining=first.pretraining,
        frozen=first.frozen,
        dim=first.dim,
        seeds=tuple(result.seed for result in group),
        scores={name: _mean(group, name) for name in sorted(shared, key=score_order)},
        intervals={name: interval95(means[name]) for name in sorted(means, key=score_order)},
        difference=difference,
        num_classes=first.num_classes,
        num_queries=first.num_queries,
        code_versions=tuple(sorted({result.code_version for result in group})),
        seconds=float(np.mean([result.seconds for result in group])),
    )


def _one_per_seed(group: list[Result], warn: Callable[[str], None]) -> list[Result]:
    latest: dict[int, Result] = {}
    for result in sorted(group, key=lambda result: (result.created, result.key)):
        if older := latest.get(result.seed):
            warn(
                f"'{result.label}' seed {result.seed} on {result.dataset} was measured by code versions "
                f"{older.code_version} and {result.code_version}; the board shows the later ({result.created})"
            )
        latest[result.seed] = result
    return [latest[seed] for seed in sorted(latest)]


def _mean(group: list[Result], name: str) -> float:
    return float(np.mean([result.scores.get(name, 0.0) for result in group]))


def _difference(group: list[Result], baseline: list[Result]) -> Difference:
    """Paired over classes, and over seeds if they are the same."""
    ours, theirs = (np.array([result.per_class.sums["recall@1"] for result in each]) for each in (group, baseline))
    seeds, others = ([result.seed for result in each] for each in (group, baseline))
    num_queries_C = np.array(group[0].per_class.num_queries)
    if seeds == others:
        draws = bootstrap_means(ours - theirs, num_queries_C, seeds)
    else:
        draws = bootstrap_means(ours, num_queries_C, seeds) - bootstrap_means(theirs, num_queries_C, others)
    mean = _mean(group, "recall@1") - _mean(baseline, "recall@1")
    return Difference(baseline[0].label, mean, interval95(draws, least=-1.0))


def _bootstrap(group: list[Result]) -> dict[str, np.ndarray]:
    names = [name for name in group[0].per_class.sums if all(name in result.per_class.sums for result in group)]
    num_queries_C = np.array(group[0].per_class.num_queries)
    seeds = [result.seed for result in group]
    sums = {name: np.array([result.per_class.sums[name] for result in group]) for name in names}
    return {name: bootstrap_means(sums[name], num_queries_C, seeds) for name in names}


def score_order(name: str) -> tuple[int, int, str]:
    """Sorts recall@1, recall@2, recall@10, then the others."""
    match = re.fullmatch(r"recall@(\d+)", name)
    return (0, int(match[1]), name) if match else (1, 0, name)
