"""A small study whose records are made up, and hands that know what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from saga_ray.config import RunConfig
from saga_ray.storage import Storage
from saga_ray.study.file import Study, load_study
from saga_ray.study.plan import Planner, Task
from saga_ray.study.record import Record, Records

STUDY = {
    "base": {"data": {"num_classes": [8, 3, 4]}},
    "worlds": {"home": {}, "away": {"data.world_seed": 1}},
    "budgets": {"paper": {"optim.epochs": 3}, "long": {"optim.steps": 100}},
    "rows": {
        "pretrained": {"method": "pretrained", "kind": "pretrained"},
        "pf": {"method": "potential-field", "kind": "baseline"},
        "pa": {"method": "proxy-anchor", "kind": "baseline"},
        "pooler": {
            "method": "potential-field+pooler",
            "kind": "control",
            "space": {"optim.lr_pooler": {"loguniform": [1e-4, 1e-2]}},
        },
        "saga": {"method": "saga", "space": {"loss.weights.grpo": {"loguniform": [0.3, 10]}}},
    },
    "tuning": {
        "trials": 3,
        "seeds": [7],
        "stop": [0.25, 0.5, 1],
        "space": {"optim.lr_tower": {"loguniform": [5e-5, 1e-3]}, "data.flip": {"choice": [True, False]}},
    },
    "blocks": [{"name": "main", "rows": ["pretrained", "pf", "pa", "pooler", "saga"], "seeds": [0, 1]}],
}


def write_study(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False), encoding="utf-8")
    return path


def fake_identify(config: RunConfig) -> tuple[str, str]:
    return f"data{config.data.world_seed}", "weights"


def small_study(folder: Path, **changes: object) -> tuple[Study, Planner, Records]:
    path = write_study(folder, **changes)
    study = load_study(path)
    return study, Planner(study, fake_identify), Records(Storage.open(folder / "mine"))


def fake_record(
    task: Task, recall: float, *, num_classes: int = 30, noise: float = 0.0, status: str = "finished"
) -> Record:
    """A record whose classes all have 10 queries and about that recall."""
    same = {key: getattr(task, key) for key in ("name", "kind", "row", "world", "budget", "seed")}
    same |= {"values": dict(task.values), "split": task.config.evaluation.split}
    if status != "finished":
        return Record(**same, status=status, cause="made up")
    generator = np.random.default_rng([task.seed, num_classes])  # the same for all rows: classes are easy or hard
    shares_C = np.clip(recall + noise * generator.standard_normal(num_classes), 0, 1)
    sums = {"recall@1": tuple(10 * shares_C), "map@r": tuple(5 * shares_C)}
    scores = {"recall@1": float(shares_C.mean()), "map@r": float(shares_C.mean()) / 2}
    return Record(
        **same, status="finished", scores=scores, sums=sums, num_queries=(10,) * num_classes, seconds=20.0, wall_s=30.0,
        steps=round(100 * task.share), device="cpu",
    )  # fmt: skip


class FakeHands:
    """Does tasks at once, in order; `outcome` says what a task's record is."""

    def __init__(self, num_jobs: int, outcome: Callable[[Task], Record]) -> None:
        self.num_jobs, self.outcome = num_jobs, outcome
        self.started: list[Task] = []
        self.running: list[Task] = []
        self.most_at_once = 0

    def start(self, task: Task) -> None:
        self.started.append(task)
        self.running.append(task)
        self.most_at_once = max(self.most_at_once, len(self.running))

    def ended(self, patience_s: float) -> list[tuple[Task, Record]]:
        task = self.running.pop()  # the last first: order must not matter
        return [(task, self.outcome(task))]


class Lines:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, text: str) -> None:
        self.lines.append(text)
