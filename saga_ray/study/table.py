"""From records to the numbers of a block's table: means, intervals, and paired differences with corrected p values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from saga_ray.leaderboard.statistics import bootstrap_means, holm, interval95, two_sided_p
from saga_ray.study.file import Block, Study
from saga_ray.study.plan import Cell, Lookup, Planner
from saga_ray.study.record import Record

SCORES = ("recall@1", "map@r")
_AGAINST_BASELINE = ("control", "method", "variant", "ceiling")
_AGAINST_CONTROL = ("method", "variant", "ceiling")


@dataclass(frozen=True)
class Line:
    """A row of the table in one world."""

    row: str
    world: str
    seeds: tuple[int, ...]
    num_wanted: int
    """Seeds that the block asks for."""
    means: dict[str, float]
    """Of `SCORES`, over the seeds; empty if no run has ended."""
    intervals: dict[str, tuple[float, float]]
    """95 %, by a bootstrap over query classes crossed with seeds (`saga_ray.leaderboard.statistics`)."""
    runs: dict[int, Record]
    """Those that ended well, by seed."""
    num_queries: int = 0
    num_classes: int = 0
    seconds: float = 0.0
    steps: float = 0.0
    scorer_tokens: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Mean of one row minus that of another, in one world and score."""

    row: str
    reference: str
    role: str
    """`baseline` or `control` for the best one of these, `named` for a pair that the block names."""
    world: str
    score: str
    mean: float
    interval: tuple[float, float]
    p: float
    """Two-sided, by the bootstrap; not a number where both rows share a single seed, which says nothing of others."""
    corrected: float
    """For the number of comparisons of this score in the block that have one."""


@dataclass(frozen=True)
class Table:
    """A block in numbers."""

    block: Block
    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    best: dict[str, str]
    """The best `baseline` and `control` by validation score."""

    def line(self, row: str, world: str) -> Line:
        """The line of a row in a world."""
        return next(line for line in self.lines if (line.row, line.world) == (row, world))

    def comparison(
        self, row: str, role: str, world: str, score: str, reference: str | None = None
    ) -> Comparison | None:
        """A row's difference to the best of a role, or to a named row."""
        found = (
            each
            for each in self.comparisons
            if (each.row, each.role, each.world, each.score) == (row, role, world, score)
            and reference in (None, each.reference)
        )
        return next(found, None)

    def difference(self, row: str, reference: str, world: str, score: str) -> Comparison | None:
        """The difference of two rows, in whatever role it was asked for."""
        wanted = (row, reference, world, score)
        found = (each for each in self.comparisons if (each.row, each.reference, each.world, each.score) == wanted)
        return next(found, None)


def block_table(study: Study, planner: Planner, block: Block, lookup: Lookup) -> Table:
    """The table of a block, of the runs that have ended."""
    cells = planner.plan(lookup, [block.name]).cells
    lines = tuple(
        _line(row, world, [cell for cell in cells if (cell.row, cell.world) == (row, world)], lookup)
        for world in study.worlds_of(block)
        for row in block.rows
    )
    best = {}
    for kind in ("baseline", "control"):
        if (row := best_row(study, planner, block, kind, lookup, lines)) is not None:
            best[kind] = row
    return Table(block, lines, tuple(_comparisons(study, block, lines, best)), best)


def _line(row: str, world: str, cells: Sequence[Cell], lookup: Lookup) -> Line:
    found = {cell.seed: lookup(cell.task.name) for cell in cells if cell.task is not None}
    records = {seed: record for seed, record in sorted(found.items()) if record and record.status == "finished"}
    if not records:
        return Line(row, world, (), len(cells), {}, {}, {})
    seeds, runs = tuple(records), list(records.values())
    return Line(
        row,
        world,
        seeds,
        len(cells),
        means={score: float(np.mean([run.scores[score] for run in runs])) for score in SCORES},
        intervals={score: interval95(draws_of(runs, score, seeds)) for score in SCORES},
        runs=records,
        num_queries=sum(runs[0].num_queries),
        num_classes=len(runs[0].num_queries),
        seconds=_seconds(runs),
        steps=float(np.mean([run.steps for run in runs])),
        scorer_tokens=float(np.mean([run.scorer_tokens for run in runs])),
    )


def _seconds(runs: Sequence[Record]) -> float:
    """A core's own seconds, of those runs for which they are known; else of the clock, whatever else the machine did."""
    return float(np.mean([run.cpu_s for run in runs if run.cpu_s] or [run.seconds for run in runs]))


def draws_of(runs: Sequence[Record], score: str, seeds: Sequence[int]) -> np.ndarray:
    """Bootstrap means of a row's score."""
    sums_SC = np.array([run.sums[score] for run in runs])
    return bootstrap_means(sums_SC, np.array(runs[0].num_queries), seeds)


def best_row(
    study: Study, planner: Planner, block: Block, kind: str, lookup: Lookup, lines: Sequence[Line]
) -> str | None:
    """The row of a kind whose trials scored best on validation classes; never chosen on test classes.

    Where a block has no trials but is itself about validation classes, its own means choose. None if nothing can.
    """
    rows = [row for row in block.rows if study.rows[row].kind == kind]
    scores: dict[str, float] = {}
    for row in rows:
        if (choice := planner.choice(row, block, lookup)) is not None:
            scores[row] = choice.score
        elif study.tuned_on(block) is None and block.split == "validation":
            own = [line.means[SCORES[0]] for line in lines if line.row == row and line.means]
            scores |= {row: float(np.mean(own))} if own else {}
    # While some are still open, the best of the others is no best one.
    return max(rows, key=lambda row: scores[row]) if rows and len(scores) == len(rows) else None


def _comparisons(study: Study, block: Block, lines: Sequence[Line], best: dict[str, str]) -> list[Comparison]:
    wanted: list[tuple[str, str, str]] = []
    for role, kinds in (("baseline", _AGAINST_BASELINE), ("control", _AGAINST_CONTROL)):
        if role in best:
            wanted += [(role, row, best[role]) for row in block.rows if study.rows[row].kind in kinds]
    # A difference that is shown twice would be corrected for twice.
    known = {(row, reference) for _, row, reference in wanted}
    wanted = [("named", *pair) for pair in block.compare if pair not in known] + wanted
    at = {(line.row, line.world): line for line in lines if line.means}
    out = []
    for score in SCORES:
        found = [
            _compared(at[row, world], at[reference, world], role, score)
            for role, row, reference in wanted
            for world in study.worlds_of(block)
            if (row, world) in at
            and (reference, world) in at
            and at[row, world].runs.keys() & at[reference, world].runs
        ]
        out += found
    return _corrected(out)


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """With p values corrected for the number of comparisons of the same score that have one."""
    out = []
    for score in SCORES:
        of_score = [each for each in found if each.score == score]
        corrected = iter(holm([each.p for each in of_score if not math.isnan(each.p)]))
        out += [each if math.isnan(each.p) else replace(each, corrected=next(corrected)) for each in of_score]
    return out


ALL_WORLDS = "all worlds"


def over_worlds(study: Study, table: Table) -> list[Comparison]:
    """Comparisons over all worlds of a block, as for a new world: Student's t over the worlds' means, each of its seeds.

    Empty unless the block says that its worlds are alike, for fewer than three of them, and for pairs of rows that do not
    stand in all.
    """
    if not table.block.worlds_alike:
        return []
    worlds, found = study.worlds_of(table.block), []
    pairs = dict.fromkeys((each.row, each.reference, each.role, each.score) for each in table.comparisons)
    for row, reference, role, score in pairs:
        each_W = [table.comparison(row, role, world, score, reference) for world in worlds]
        means_W = [each.mean for each in each_W if each is not None]
        if len(means_W) == len(worlds) >= 3:
            test = stats.ttest_1samp(means_W, 0.0)
            low, high = test.confidence_interval(0.95)
            p, mean = float(test.pvalue), float(np.mean(means_W))
            found.append(Comparison(row, reference, role, ALL_WORLDS, score, mean, (float(low), float(high)), p, p))
    return _corrected(found)


def _compared(line: Line, reference: Line, role: str, score: str) -> Comparison:
    """Over the seeds that both rows have."""
    seeds = tuple(seed for seed in line.seeds if seed in reference.runs)
    pairs = [(line.runs[seed], reference.runs[seed]) for seed in seeds]
    sums_SC = np.array([np.subtract(run.sums[score], other.sums[score]) for run, other in pairs])
    difference = bootstrap_means(sums_SC, np.array(pairs[0][0].num_queries), seeds)
    p = two_sided_p(difference) if len(seeds) > 1 else math.nan
    mean = float(np.mean([run.scores[score] - other.scores[score] for run, other in pairs]))
    return Comparison(line.row, reference.row, role, line.world, score, mean, interval95(difference, least=-1.0), p, p)
