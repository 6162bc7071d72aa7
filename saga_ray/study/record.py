"""What is kept of a run of a study: one compact JSON file, written once; records of other days and machines add up."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from saga_ray.config import Config
from saga_ray.storage import Storage

logger = logging.getLogger(__name__)

MAX_POINTS = 40
"""Points that are kept of a curve."""
_CURVES = ("loss/", "gradient/", "reward/", "consensus/", "reference/", "validation/")
_CURVES_TOO = ("grpo/zero_advantage_share", "grpo/malformed_share", "grpo/contributing_pairs")


class Record(Config):
    """One run, of a trial or of a table."""

    version: Literal[1] = 1
    name: str
    """Of its file: row, world, budget, seed, and a digest of configuration, data and weights. The code is not in it."""
    kind: Literal["trial", "final"]
    row: str
    world: str
    budget: str
    seed: int
    split: str
    values: dict[str, Any] = Field({})
    """What was searched or chosen for the row."""
    status: Literal["finished", "not a number", "failed"]
    cause: str | None = None
    """Why there are no scores."""
    label: str = ""
    """The method and every key changed from it."""
    fingerprint: str = ""
    """Of the data."""
    weights: str = ""
    """Of the MLLM."""
    scores: dict[str, float] = Field({})
    num_queries: tuple[int, ...] = ()
    """Of each class."""
    sums: dict[str, tuple[float, ...]] = Field({})
    """For recall@1 and map@r: the sum over each class's queries."""
    seconds: float = 0.0
    """Of training and evaluation."""
    wall_s: float = 0.0
    """Of everything, loading included."""
    cpu_s: float = 0.0
    """Seconds of a core that everything took, whatever else the machine did; 0 for a run on a GPU."""
    steps: int = 0
    scorer_tokens: int = 0
    """Tokens that the MLLM wrote."""
    device: str = ""
    code: str = ""
    """Version and commit."""
    created: str = ""
    curves: dict[str, tuple[float | None, ...]] = Field({})
    """`step`, and means of metrics.jsonl up to each of these steps."""
    diagnosis: dict[str, Any] | None = None

    @property
    def is_settled(self) -> bool:
        """True if running it again would tell nothing new; what failed is tried again."""
        return self.status != "failed"

    def to_json(self) -> bytes:
        """One line; fields that hold nothing are left out."""
        values = rounded(self.model_dump(mode="json", exclude_defaults=True) | {"version": 1})
        return (json.dumps(values, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


class Records:
    """The records in a folder; `refresh` sees those that came since."""

    def __init__(self, folder: Storage) -> None:
        self.folder = folder
        self._known: dict[str, Record] = {}
        self._settled: dict[str, Record] = {}
        """By digest, which is what a run is."""
        self.refresh()

    def refresh(self) -> None:
        """Read files that are new; forget those that are gone."""
        names = {name.removesuffix(".json") for name in self.folder.list() if name.endswith(".json")}
        for name in self._known.keys() - names:
            del self._known[name]
        for name in sorted(names - self._known.keys()):
            try:
                self._known[name] = Record.model_validate(json.loads(self.folder.read(f"{name}.json")))
            except (ValueError, ValidationError) as error:
                reason = str(error).splitlines()[0]
                logger.warning(
                    "%s/%s.json: is no record (%s); its run counts as not done", self.folder.uri, name, reason
                )
        self._settled = {_digest(name): record for name, record in self._known.items() if record.is_settled}

    def get(self, name: str) -> Record | None:
        """The record of that name, if it is there, or of the same run under the name of another row, world or budget."""
        return self._known.get(name) or self._settled.get(_digest(name))

    def all(self) -> list[Record]:
        """Everything that is known."""
        return list(self._known.values())

    def write(self, record: Record) -> None:
        """Keep a record, in place of one that said that the same run had failed."""
        content = record.to_json()
        self.folder.write(f"{record.name}.json", content)
        # As it will be read by the next process: a choice among trials must not turn on digits that are not kept.
        self._known[record.name] = kept = Record.model_validate(json.loads(content))
        if kept.is_settled:
            self._settled[_digest(record.name)] = kept


def _digest(name: str) -> str:
    return name.rpartition("-")[2]


def rounded(value: Any, digits: int = 5) -> Any:
    """Floats in lists and mappings with `digits` significant digits; whole ones as integers."""
    if isinstance(value, float):
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() else short
    if isinstance(value, Mapping):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    return value


def thinned(lines: Sequence[Mapping[str, Any]], max_points: int = MAX_POINTS) -> dict[str, tuple[float | None, ...]]:
    """Curves of a run: means over at most `max_points` stretches of steps, and the last step of each.

    A value that stands in none of a stretch's lines is None there.
    """
    if not lines:
        return {}
    keys = [key for key in {key: None for line in lines for key in line} if _is_shown(key)]
    stretches = [part for part in np.array_split(np.arange(len(lines)), min(max_points, len(lines))) if len(part)]
    curves: dict[str, tuple[float | None, ...]] = {"step": tuple(lines[int(part[-1])]["step"] for part in stretches)}
    for key in keys:
        found = [[lines[int(place)].get(key) for place in part] for part in stretches]
        curves[key] = tuple(_mean(values) for values in found)
    return curves


def _is_shown(key: str) -> bool:
    return key.startswith(_CURVES) or key in _CURVES_TOO


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float) and np.isfinite(value)]
    return float(np.mean(numbers)) if numbers else None
