"""What is remembered of a sweep's trials: one small file each, so that a sweep that is typed again goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from saga_ray.on_ray.sweep import SweepFile
from saga_ray.storage import Storage

Status = Literal["started", "finished", "failed", "not a number"]


@dataclass(frozen=True)
class Trial:
    """One point of the search, and what became of it."""

    name: str
    """Of its run."""
    values: Mapping[str, Any]
    status: Status
    score: float | None = None
    cause: str | None = None
    """Why there is no score."""
    draws: int = 1
    """Times that the search asked for this point; it is run once."""
    seconds: float = 0.0


@dataclass(frozen=True)
class TrialStore:
    """`RUNS/SWEEP/trials/NAME.json`."""

    folder: Storage

    @classmethod
    def of(cls, sweep: SweepFile, runs: Storage) -> TrialStore:
        """The trials of a sweep below a folder of runs."""
        return cls(runs.child(sweep.folder))

    def write(self, trial: Trial) -> None:
        """Remember a trial, in place of what was known of it."""
        self.folder.write(f"trials/{trial.name}.json", json.dumps(asdict(trial), indent=1, sort_keys=True).encode())

    def read(self, name: str) -> Trial | None:
        """The trial of a run, if it was ever started; a damaged file counts as none."""
        try:
            return Trial(**json.loads(self.folder.read(f"trials/{name}.json")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def all(self) -> list[Trial]:
        """Every trial, in the order of their names."""
        names = [name.removesuffix(".json") for name in self.folder.list("trials") if name.endswith(".json")]
        return [trial for name in names if (trial := self.read(name)) is not None]


def is_settled(trial: Trial) -> bool:
    """True if running it again could not change anything; failed and interrupted trials are run again."""
    return trial.status in ("finished", "not a number")


def best_trial(trials: Sequence[Trial], mode: str) -> Trial | None:
    """The finished trial with the best score; among equals the first by name."""
    finished = [trial for trial in trials if trial.status == "finished" and trial.score is not None]
    sign = -1.0 if mode == "max" else 1.0
    return min(finished, key=lambda trial: (sign * trial.score, trial.name), default=None)


def causes(trials: Sequence[Trial]) -> str:
    """Why trials have no score, most frequent first, in one line."""
    counted = Counter(f"{trial.status}: {trial.cause or 'no cause known'}" for trial in trials if trial.score is None)
    return "; ".join(f"{cause} ({number} of {len(trials)})" for cause, number in counted.most_common(3))
