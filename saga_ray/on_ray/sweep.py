"""Sweep files: what is searched, over which dotted keys; every mistake is reported at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saga_ray.config import DATASETS, RECIPES, RunConfig
from saga_ray.config.keys import check_choice, flat, nearest
from saga_ray.configure import METHODS, ConfigError, resolve
from saga_ray.study.space import METRICS, Range, read_space
from saga_ray.yaml_text import load_yaml

_KEYS = ("dataset", "recipe", "method", "metric", "mode", "trials", "steps", "seed", "space", "base")
_FIELDS = ("dataset", "recipe", "method")
"""Keys that stand at the head of a sweep file, not under `base`."""


@dataclass(frozen=True)
class SweepFile:
    """A search over dotted keys."""

    name: str
    """Stem of its file; with a hash of all below but `trials`, the name of its folder."""
    space: Mapping[str, Range]
    dataset: str = "demo"
    recipe: str | None = None
    method: str = "saga"
    metric: str = "recall@1"
    """Measured on the validation classes."""
    mode: str = "max"
    trials: int = 12
    seed: int = 0
    """Of the search; the runs' own is `base: {seed: ...}`."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys that all trials share."""

    @property
    def folder(self) -> str:
        """Name of the sweep's folder: another search never meets the trials of this one, a longer one does."""
        told = {
            "space": {key: [r.kind, *r.values] for key, r in self.space.items()},
            "base": dict(self.base),
            **{key: getattr(self, key) for key in ("dataset", "recipe", "method", "metric", "mode", "seed")},
        }
        return f"sweep-{self.name}-{_digest(told)}"

    def trial_name(self, values: Mapping[str, Any]) -> str:
        """Run name of the trial with these values; equal values make one run."""
        return f"{self.folder}-{_digest(values)}"

    def config(self, values: Mapping[str, Any], split: str = "validation") -> RunConfig:
        """The run of a trial, chosen on validation classes; `split="test"` for the winner's row."""
        overrides = {**self.base, **values, "evaluation.split": split}
        return resolve(self.dataset, method=self.method, recipe=self.recipe, overrides=overrides)


def _digest(told: Mapping[str, Any]) -> str:
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def load_sweep(
    path: str | Path,
    *,
    dataset: str | None = None,
    trials: int | None = None,
    steps: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SweepFile:
    """Read and check a sweep file; arguments replace what it says, `overrides` its `base` (or data set, recipe, method).

    Raises:
        ConfigError: every mistake at once, one sentence per line.
    """
    source = str(path)
    told = load_yaml(path)
    problems = [f"{source}: unknown key '{key}'{nearest(key, _KEYS)}" for key in told if key not in _KEYS]
    base = told.get("base") or {}
    if not isinstance(base, dict):
        problems.append(f"{source}: base: {base!r} is not a mapping of dotted keys to values; write one")
        base = {}
    base, typed = flat(base), dict(overrides or {})
    for key in _FIELDS:
        if key in base:
            problems.append(f"{source}: base: {key} stands at the head of the file, not under base; move it there")
            del base[key]
    for key, value in (("dataset", dataset), ("optim.steps", steps)):
        if value is not None and typed.get(key, value) != value:
            problems.append(f"--set {key}={typed[key]}: another option says {value}; give only one of the two")
        if value is not None:
            typed[key] = value
    head = told | {key: typed.pop(key) for key in _FIELDS if key in typed}
    if head.get("steps") is not None:
        base["optim.steps"] = head["steps"]
    base |= typed
    sweep = SweepFile(
        name=Path(path).stem,
        space={},
        dataset=str(head.get("dataset", "demo")),
        recipe=head.get("recipe"),
        method=str(head.get("method", "saga")),
        metric=str(head.get("metric", "recall@1")),
        mode=str(head.get("mode", "max")),
        trials=trials if trials is not None else head.get("trials", 12),
        seed=head.get("seed", 0),
        base=base,
    )
    problems += _check_head(sweep, source)
    space, wrong = read_space(told.get("space"), f"{source}: space")
    problems += wrong
    problems += [
        f"{source}: space: {key} is searched, but base or --set fixes it at {base[key]}; take it out of one of the two"
        for key in space
        if key in base
    ]
    if "evaluation.split" in base:
        problems.append(f"{source}: base: evaluation.split is 'validation' for every trial; remove it")
    sweep = replace(sweep, space=space)
    if not any(line.startswith((f"{source}: data set", f"{source}: method", f"{source}: recipe")) for line in problems):
        problems += _check_values(sweep, source)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return sweep


def _check_head(sweep: SweepFile, source: str) -> list[str]:
    choices = [
        ("data set", sweep.dataset, DATASETS),
        ("method", sweep.method, METHODS),
        ("metric", sweep.metric, METRICS),
        ("mode", sweep.mode, ("max", "min")),
    ]
    if sweep.recipe is not None:
        choices.append(("recipe", str(sweep.recipe), RECIPES))
    problems = [f"{source}: {line}" for what, value, known in choices if (line := check_choice(what, value, known))]
    for key, lowest in (("trials", 1), ("seed", 0)):
        value = getattr(sweep, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            problems.append(f"{source}: {key}: {value!r} is not accepted; give a whole number from {lowest} on")
    return problems


def _check_values(sweep: SweepFile, source: str) -> list[str]:
    """What the configuration says to the base, and to each end or choice of each range on its own."""
    try:
        sweep.config({})
    except ConfigError as error:
        return [f"{source}: base: {line.removeprefix('--set: ')}" for line in str(error).splitlines()]
    problems = []
    for key, span in sweep.space.items():
        for value in span.values:
            try:
                sweep.config({key: value})
            except ConfigError as error:
                problems += [f"{source}: space: {line}" for line in str(error).splitlines()]
    return problems
