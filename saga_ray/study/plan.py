"""From a study to its runs: a pure function of the file, of what data and weights are, and of the trials' records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from saga_ray.config import RunConfig
from saga_ray.study.file import STOP, Block, Study
from saga_ray.study.record import Record
from saga_ray.study.space import draw_points

Identify = Callable[[RunConfig], tuple[str, str]]
"""A run's data and weights, each as a short name that changes with their content."""
Lookup = Callable[[str], Record | None]
"""The record of that name, if there is one."""


@dataclass(frozen=True)
class Task:
    """One run, of a trial or of a table."""

    name: str
    kind: Literal["trial", "final"]
    row: str
    world: str
    budget: str
    seed: int
    values: Mapping[str, Any]
    config: RunConfig
    fingerprint: str
    weights: str
    diagnose: bool = False

    @property
    def share(self) -> float:
        """Share of the budget that it takes."""
        return float(self.values.get(STOP, 1.0))

    @property
    def title(self) -> str:
        """For progress lines."""
        return f"{self.kind} {self.row}, {self.world}, {self.budget}, seed {self.seed}"


@dataclass(frozen=True)
class Choice:
    """What the trials of a row chose."""

    values: Mapping[str, Any]
    score: float
    """Mean over the tuning's seeds, on validation classes."""


@dataclass(frozen=True)
class Cell:
    """A run of a block's table; `task` is None until the trials of its row have ended."""

    block: str
    row: str
    world: str
    budget: str
    seed: int
    task: Task | None


@dataclass(frozen=True)
class Plan:
    """Everything that the blocks need, in the order in which it is done."""

    tasks: tuple[Task, ...]
    """Trials, and those runs of tables whose values are known; each once."""
    cells: tuple[Cell, ...]

    @property
    def num_waiting(self) -> int:
        """Runs of tables that wait for trials."""
        return sum(cell.task is None for cell in self.cells)

    def open(self, lookup: Lookup) -> list[Task]:
        """Tasks that are not done."""
        return [task for task in self.tasks if not is_done(task, lookup)]


def is_done(task: Task, lookup: Lookup) -> bool:
    """True if a record says how the task ended, and what was found in it, if that was asked."""
    record = lookup(task.name)
    if record is None or not record.is_settled:
        return False
    return not task.diagnose or record.status != "finished" or record.diagnosis is not None


class Planner:
    """Plans of one study; what was resolved once is remembered."""

    def __init__(self, study: Study, identify: Identify) -> None:
        self.study = study
        self._identify = identify
        self._tasks: dict[str, Task] = {}
        self._drawn: dict[str, list[dict[str, Any]]] = {}

    def plan(self, lookup: Lookup, blocks: Iterable[str] | None = None) -> Plan:
        """Tasks of the named blocks, or of all.

        A block's trials come first, row by row, then its table, seed by seed, so that a study that is cut short has
        every row.
        """
        wanted = set(blocks) if blocks is not None else {block.name for block in self.study.blocks}
        tasks: dict[str, Task] = {}
        cells: list[Cell] = []
        for block in self.study.blocks:
            if block.name not in wanted:
                continue
            for row in block.rows:
                tasks |= {task.name: task for task in self.trials(row, block)}
            of_block = self._cells(block, lookup)
            for task in (cell.task for cell in of_block if cell.task):
                if task.name not in tasks or task.diagnose:
                    tasks[task.name] = task
            cells += of_block
        return Plan(tuple(tasks.values()), tuple(cells))

    def trials(self, row: str, block: Block) -> list[Task]:
        """The trials that a block's row rests on; none if nothing is trained or tuned. Seeds of a point stand together."""
        tuned = self.study.tuned_on(block)
        if tuned is None or not self.study.rows[row].trains:
            return []
        tuning = self.study.tuning
        points = self._points(row)
        return [self._task("trial", row, *tuned, seed, "validation", p) for p in points for seed in tuning.seeds]

    def choice(self, row: str, block: Block, lookup: Lookup) -> Choice | None:
        """The values with the best mean on validation classes, of equal ones the first; None before all trials ended."""
        trials = self.trials(row, block)
        records = [lookup(task.name) for task in trials]
        if not trials or any(record is None or not record.is_settled for record in records):
            return None
        metric, num_seeds = self.study.tuning.metric, len(self.study.tuning.seeds)
        scores = np.array([record.scores.get(metric, np.nan) if record else np.nan for record in records])
        means = scores.reshape(-1, num_seeds).mean(axis=1)  # a point of which any run is not a number is out
        if np.isnan(means).all():
            return None
        best = int(np.nanargmax(means))
        return Choice(trials[best * num_seeds].values, float(means[best]))

    def _cells(self, block: Block, lookup: Lookup) -> list[Cell]:
        study = self.study
        needs_choice = {row: study.tuned_on(block) is not None and study.rows[row].trains for row in block.rows}
        chosen = {row: self.choice(row, block, lookup) for row in block.rows}
        cells = []
        seeds_of = {row: block.seeds_of.get(row, block.seeds) for row in block.rows}
        for seed in sorted({seed for seeds in seeds_of.values() for seed in seeds}):
            for world in study.worlds_of(block):
                for row in (row for row in block.rows if seed in seeds_of[row]):
                    choice, task, budget = chosen[row], None, study.budget_of(block, row)
                    if choice is not None or not needs_choice[row]:
                        values = choice.values if choice else {}
                        always = study.rows[row].diagnose and block.split == "test"
                        diagnose = always or row in block.diagnose
                        task = self._task("final", row, world, budget, seed, block.split, values, block.set, diagnose)
                    cells.append(Cell(block.name, row, world, budget, seed, task))
        return cells

    def _points(self, row: str) -> list[dict[str, Any]]:
        if row not in self._drawn:
            tuning = self.study.tuning
            self._drawn[row] = draw_points(self.study.space(row), tuning.trials, tuning.seed)
        return self._drawn[row]

    def _task(
        self,
        kind: Literal["trial", "final"],
        row: str,
        world: str,
        budget: str,
        seed: int,
        split: str,
        values: Mapping[str, Any],
        on_top: Mapping[str, Any] | None = None,
        diagnose: bool = False,
    ) -> Task:
        told = [kind, row, world, budget, seed, split, dict(values), dict(on_top or {}), diagnose]
        key = json.dumps(told, default=str)
        if key not in self._tasks:
            config = self.study.config(row, world, budget, seed=seed, split=split, values=values, on_top=on_top)
            fingerprint, weights = self._identify(config)
            name = f"{row}-{world}-{budget}-seed{seed}-{digest(config, fingerprint, weights)}"
            self._tasks[key] = Task(
                name, kind, row, world, budget, seed, dict(values), config, fingerprint, weights, diagnose
            )
        return self._tasks[key]


def digest(config: RunConfig, fingerprint: str, weights: str) -> str:
    """10 hex digits over what decides a run's numbers.

    Values that are the configuration's own defaults are left out: a key that is added later leaves records as they
    are. Left out too are places, what changes speed alone, and of a run that trains nothing how it would train; data and
    weights have names of their own.
    """
    left_out = {"resources", "checkpoint", "recipe", "method", "scorer"}
    if config.encoder.trainable == "none":
        left_out |= {"optim", "loss", "grpo", "alignment", "consensus"}
    told = config.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
    told.get("data", {}).pop("root", None)
    told["mllm"] = {"dtype": config.mllm.dtype}
    text = json.dumps([told, config.evaluation.split, fingerprint, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def seconds_left(plan: Plan, lookup: Lookup, records: Sequence[Record], jobs: int) -> float | None:
    """Seconds until everything is done, by the records' own; None without any record.

    A run takes as long as others of its row and budget took, else of its budget, else any, in proportion to its share of
    the budget; a run that waits for trials is taken at its full budget.
    """
    seen: dict[Any, list[float]] = {}
    for record in records:
        if record.status == "finished":
            rate = record.wall_s / float(record.values.get(STOP, 1.0))
            for key in ((record.row, record.budget), record.budget, None):
                seen.setdefault(key, []).append(rate)
    if not seen:
        return None

    def rate_of(row: str, budget: str) -> float:
        return float(np.mean(next(seen[key] for key in ((row, budget), budget, None) if key in seen)))

    total = sum(task.share * rate_of(task.row, task.budget) for task in plan.open(lookup))
    waiting = [cell for cell in plan.cells if cell.task is None]
    total += sum(rate_of(cell.row, cell.budget) for cell in waiting)
    return total / max(1, jobs)
