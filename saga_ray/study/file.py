"""Study files: rows, worlds, budgets, and the blocks that cross them; every mistake is reported at once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from saga_ray.config import Config, RunConfig
from saga_ray.config.keys import check_choice, flat, nearest
from saga_ray.configure import METHODS, ConfigError, resolve
from saga_ray.study.space import METRICS, Range, read_space
from saga_ray.yaml_text import load_yaml

STOP = "stop"
"""Name of the searched share of a budget's epochs or steps."""
Kind = Literal["pretrained", "baseline", "control", "method", "variant", "ablation", "ceiling"]
_LITERAL = "literal['defaults']"
"""In the place of an error: what was written is not the word either. The other half of the same mistake says more."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,59}")


class Row(Config):
    """One line of a table: a method, what is set on it, and what is searched for it."""

    method: str
    """Preset, as for `saga-ray train --method`."""
    kind: Kind = "method"
    """What the row is for; `method`, `variant` and `ceiling` are compared with the best `baseline` and the best `control`, an
    `ablation`, from which something is taken away on purpose, only where a block names it."""
    set: dict[str, Any] = Field({})
    """Dotted keys of this row."""
    space: dict[str, Any] = Field({})
    """Ranges of dotted keys, as in a sweep file, beside those of `tuning.space`."""
    diagnose: bool = False
    """Look into the trained encoder of all runs that test classes meet (`saga_ray.train.diagnosis`)."""

    @property
    def trains(self) -> bool:
        """False for the encoder as it comes: there is nothing to tune, and no budget."""
        preset = METHODS.get(self.method, {}).get("encoder", {}).get("trainable")
        return flat(self.set).get("encoder.trainable", preset) != "none"


class Tuning(Config):
    """How every row's values are chosen, on validation classes."""

    trials: int = Field(6, ge=1)
    """Points of every row; the first is what the file says, the others are drawn before the study begins."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Runs of every point; their mean counts."""
    metric: Literal[METRICS] = "recall@1"  # type: ignore[valid-type] # names in one place; checkers want them written out
    split: Literal["validation"] = "validation"
    """Test classes are not for choosing."""
    stop: tuple[float, ...] = ()
    """Shares of the budget's epochs or steps among which the length of a run is chosen."""
    space: dict[str, Any] = Field({})
    """Ranges that are searched for every row that trains."""
    seed: int = Field(0, ge=0)
    """Of the points."""


class TunedOn(Config):
    """Where the values of a block's rows were chosen; null is the study's first world, and the block's budget."""

    world: str | None = None
    budget: str | None = None


class Block(Config):
    """A table: some rows in one world or several, at one budget."""

    name: str
    rows: tuple[str, ...] = Field(min_length=1)
    world: str | tuple[str, ...] | None = None
    """One, or several; null is the study's first."""
    budget: str | None = None
    """Null is the study's first."""
    budgets_of: dict[str, str] = Field({})
    """Rows at another budget than the block's."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    seeds_of: dict[str, tuple[int, ...]] = Field({})
    """Rows with other seeds than the block's."""
    diagnose: tuple[str, ...] = ()
    """Rows that are looked into in this block, beside those that always are; the page then has pictures of the block."""
    set: dict[str, Any] = Field({})
    """Dotted keys of the block's runs, on top of what was chosen for a row."""
    tuned_on: TunedOn | Literal["defaults"] = TunedOn()
    """`defaults` takes every row as the file says it, without trials."""
    split: Literal["validation", "test"] = "test"
    table: Literal["rows", "worlds"] = "rows"
    """`worlds` shows rows against worlds."""
    worlds_alike: bool = False
    """The worlds are draws of one kind, as by other seeds, and comparisons are also made over all of them."""
    compare: tuple[tuple[str, str], ...] = ()
    """Further pairs of rows to compare: the first one minus the second."""
    note: str = ""
    """A sentence for the page."""

    @field_validator("tuned_on", mode="before")
    @classmethod
    def _is_a_place_or_defaults(cls, told: Any) -> Any:
        if told != "defaults" and not isinstance(told, dict | TunedOn):
            raise ValueError("write defaults, or {world: NAME, budget: NAME}")
        return told


class Study(Config):
    """A study file."""

    name: str
    """Stem of the file, and name of the folder beside it that holds the records."""
    dataset: str = "demo"
    recipe: str | None = None
    title: str = ""
    note: str = ""
    """Shown under the title: what the study does not show."""
    base: dict[str, Any] = Field({})
    """Dotted keys of every run."""
    worlds: dict[str, dict[str, Any]] = Field({"default": {}}, min_length=1)
    """Dotted keys of each world."""
    budgets: dict[str, dict[str, Any]] = Field({"default": {}}, min_length=1)
    """Dotted keys of each budget."""
    rows: dict[str, Row] = Field(min_length=1)
    tuning: Tuning = Tuning()
    blocks: tuple[Block, ...] = Field(min_length=1)

    def worlds_of(self, block: Block) -> tuple[str, ...]:
        """The worlds of a block."""
        return block.world if isinstance(block.world, tuple) else (block.world or next(iter(self.worlds)),)

    def budget_of(self, block: Block, row: str | None = None) -> str:
        """The budget of a block, or of one of its rows."""
        return block.budgets_of.get(row or "") or block.budget or next(iter(self.budgets))

    def tuned_on(self, block: Block) -> tuple[str, str] | None:
        """World and budget of the trials that a block's rows rest on; None if they are taken as they are."""
        if block.tuned_on == "defaults":
            return None
        return block.tuned_on.world or next(iter(self.worlds)), block.tuned_on.budget or self.budget_of(block)

    def space(self, row: str) -> dict[str, Range]:
        """What is searched for a row."""
        if not self.rows[row].trains:
            return {}
        told = self.tuning.space | self.rows[row].space
        space = read_space(told, "")[0] if told else {}
        if self.tuning.stop:
            space[STOP] = Range("choice", self.tuning.stop)
        return space

    def config(
        self,
        row: str,
        world: str,
        budget: str,
        *,
        seed: int = 0,
        split: str = "test",
        values: Mapping[str, Any] | None = None,
        on_top: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """The run of a row: base, world, budget, the row's keys, chosen values, the block's keys, later ones above.

        Raises:
            ConfigError: what the combination cannot mean.
        """
        told = self.rows[row]
        below = [flat(keys) for keys in (self.base, self.worlds[world], self.budgets[budget])]
        if not told.trains:
            below = [{key: value for key, value in keys.items() if not key.startswith("optim.")} for keys in below]
        values = dict(values or {})
        stop = values.pop(STOP, 1)
        keys: dict[str, Any] = {"seed": seed, "evaluation.split": split}
        for part in (*below, flat(told.set), values, flat(on_top or {})):
            keys |= part

        def resolved() -> RunConfig:
            return resolve(self.dataset, method=told.method, recipe=self.recipe, overrides=keys)

        if stop != 1:
            optim = resolved().optim
            share = {"optim.epochs": optim.epochs * stop}
            keys |= share if optim.steps is None else {"optim.steps": max(1, round(optim.steps * stop))}
        return resolved()


def load_study(path: str | Path, *, dataset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read and check a study file; `dataset` replaces what it says, `overrides` go into its `base`.

    Raises:
        ConfigError: every mistake at once, one sentence per line.
    """
    source = str(path)
    told = load_yaml(path)
    base = told.get("base") or {}
    if isinstance(base, dict):
        told["base"] = flat(base) | dict(overrides or {})
    told |= {"name": Path(path).stem} | ({} if dataset is None else {"dataset": dataset})
    study, problems = _validated(told, source)
    if study is not None:
        problems += [f"{source}: {line}" for line in _check_names(study)]
        problems += _check_spaces(study, source)
        problems += _check_parts(study, source)
        if not problems:
            problems += _check_runs(study, source)
    if problems or study is None:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return study


_SAME = {"optim.steps": "optim.epochs"}
"""Two words for one thing; whichever is set last counts."""


def kept_by_the_file(study: Study, overrides: Mapping[str, Any]) -> list[str]:
    """A sentence for every key that lies in `base` in vain, because parts of the file that come later set it too."""
    parts = [(f"worlds.{name}", flat(keys)) for name, keys in study.worlds.items()]
    parts += [(f"budgets.{name}", flat(keys)) for name, keys in study.budgets.items()]
    parts += [(f"rows.{name}", flat(row.set)) for name, row in study.rows.items()]
    parts += [(f"blocks.{block.name}", flat(block.set)) for block in study.blocks]
    lines = []
    for key in overrides:
        names = [name for name, keys in parts if _SAME.get(key, key) in {_SAME.get(each, each) for each in keys}]
        if names:
            said = "sets it itself" if len(names) == 1 else "set it themselves"
            lines.append(f"--set {key}: {', '.join(names)} of the file {said}, and that counts")
    return lines


def _validated(told: dict[str, Any], source: str) -> tuple[Study | None, list[str]]:
    """The study, without keys that are unknown, and sentences about it; None if a value is wrong."""
    problems: list[str] = []
    while True:
        try:
            return Study.model_validate(told), problems
        except ValidationError as error:
            items = [item for item in error.errors() if _LITERAL not in item["loc"]]
            within = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
            items = [item for item in items if not (item["type"] == "too_short" and item["loc"] in within)]
            unknown = [item for item in items if item["type"] == "extra_forbidden"]
            problems += [f"{source}: {_sentence(item, told)}" for item in unknown or items]
            if not unknown:
                return None, problems
            for *branches, leaf in (item["loc"] for item in unknown):
                level: Any = told
                for branch in branches:
                    level = level if branch == TunedOn.__name__ else level[branch]
                del level[leaf]


def _sentence(item: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    place = [str(part) for part in item["loc"]]
    key = ".".join(_named(item["loc"], told))
    if item["type"] == "extra_forbidden":
        group = {"rows": Row, "tuning": Tuning, "blocks": Block}.get(place[0], Study) if len(place) > 1 else Study
        return f"unknown key '{key}'{nearest(place[-1], group.model_fields)}"
    if item["type"] == "missing":
        return f"{key}: is missing; a study needs it"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "tuple_type":
        message = f"write a list, such as {_EXAMPLES.get(place[-1], '[saga, infonce]')}"
    return f"{key}: {item['input']!r} is not accepted: {message[0].lower()}{message[1:]}"


_EXAMPLES = {"seeds": "[0, 1]", "stop": "[0.5, 1]", "compare": "[[saga, infonce]]"}


def _named(place: Sequence[str | int], told: Mapping[str, Any]) -> list[str]:
    """Where a value stands; blocks by their names, as everywhere else."""
    parts = [str(part) for part in place if part != TunedOn.__name__]
    with contextlib.suppress(LookupError, TypeError):
        if place[0] == "blocks":
            parts[1] = str(told["blocks"][place[1]]["name"])
    return parts


def _check_names(study: Study) -> Iterator[str]:
    for what, names in (
        ("rows", study.rows), ("worlds", study.worlds), ("budgets", study.budgets), ("blocks", _names(study)),
    ):  # fmt: skip
        for name in names:
            if not _NAME.fullmatch(name):
                yield f"{what}: {name!r} is no name; use 1 to 60 letters, digits and . _ + = -, starting with a letter or digit"
    for name in {name for name in _names(study) if _names(study).count(name) > 1}:
        yield f"blocks: '{name}' stands twice; give each block a name of its own"
    for name, row in study.rows.items():
        if sentence := check_choice("method", row.method, METHODS):
            yield f"rows.{name}: {sentence}"
        if row.space and not row.trains:
            yield f"rows.{name}.space: '{row.method}' trains nothing, so there is nothing to search; remove it"
    for stop in study.tuning.stop:
        if not 0 < stop <= 1:
            yield f"tuning.stop: {stop} is no share of a budget; use numbers above 0, up to 1"
    for block in study.blocks:
        wanted = [("row", name, study.rows) for name in (*block.rows, *(n for pair in block.compare for n in pair))]
        wanted += [
            ("row", name, dict.fromkeys(block.rows)) for name in (*block.seeds_of, *block.budgets_of, *block.diagnose)
        ]
        wanted += [("world", name, study.worlds) for name in study.worlds_of(block)]
        wanted += [("budget", name, study.budgets) for name in (study.budget_of(block), *block.budgets_of.values())]
        if tuned_on := study.tuned_on(block):
            wanted += [("world", tuned_on[0], study.worlds), ("budget", tuned_on[1], study.budgets)]
        for what, name, known in wanted:
            if sentence := check_choice(what, name, known):
                yield f"blocks.{block.name}: {sentence}"
        for name in {n for pair in block.compare for n in pair} - set(block.rows):
            if name in study.rows:
                yield f"blocks.{block.name}.compare: row '{name}' is not in this block; add it to its rows"


def _names(study: Study) -> list[str]:
    return [block.name for block in study.blocks]


def _check_spaces(study: Study, source: str) -> list[str]:
    spaces = {"tuning": study.tuning.space} | {f"rows.{name}": row.space for name, row in study.rows.items()}
    return [line for place, told in spaces.items() if told for line in read_space(told, f"{source}: {place}.space")[1]]


def _check_parts(study: Study, source: str) -> list[str]:
    """What the configuration says to each part of the file alone."""
    method = next((row.method for row in study.rows.values() if row.method in METHODS), None)
    parts: list[tuple[str, str | None, Mapping[str, Any]]] = [("base", method, study.base)]
    parts += [(f"worlds.{name}", method, keys) for name, keys in study.worlds.items()]
    parts += [(f"budgets.{name}", method, keys) for name, keys in study.budgets.items()]
    parts += [
        (f"rows.{name}{'.set' if row.set else ''}", row.method, row.set)
        for name, row in study.rows.items()
        if row.method in METHODS
    ]
    parts += [(f"blocks.{block.name}.set", method, block.set) for block in study.blocks if block.set]
    problems: dict[str, str] = {}
    for place, of_method, keys in parts:
        try:
            resolve(study.dataset, method=of_method, recipe=study.recipe, overrides=flat(study.base) | flat(keys))
        except ConfigError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, f"{source}: {place}: {line.removeprefix('--set: ')}")
        if "seed" in flat(keys) or "evaluation.split" in flat(keys):
            problems.setdefault(
                place, f"{source}: {place}: seed and evaluation.split are the blocks' (seeds, split); remove them"
            )
    return list(problems.values())


def _check_runs(study: Study, source: str) -> list[str]:
    """What the configuration says to every row in every block, and to the ends and choices of what is searched."""
    problems: dict[str, str] = {}
    seen = set()
    for block in study.blocks:
        tuned = study.tuned_on(block)
        for row in block.rows:
            places = {(world, study.budget_of(block, row), True) for world in study.worlds_of(block)}
            places |= {(*tuned, False)} if tuned else set()
            for world, budget, is_final in sorted(places - {(w, b, f) for r, w, b, f in seen if r == row}):
                on_top = block.set if is_final else {}
                if not on_top:
                    seen.add((row, world, budget, is_final))
                for values in [{}] if is_final else _corners(study.space(row)):
                    try:
                        study.config(row, world, budget, values=values, on_top=on_top)
                    except ConfigError as error:
                        for line in str(error).splitlines():
                            problems.setdefault(line, f"{source}: rows.{row}: {line.removeprefix('--set: ')}")
    return list(problems.values())


def _corners(space: Mapping[str, Range]) -> list[dict[str, Any]]:
    """Points that hold every end and every choice of the ranges at least once."""
    longest = max((len(span.values) for span in space.values()), default=1)
    return [
        {key: span.values[min(place, len(span.values) - 1)] for key, span in space.items()} for place in range(longest)
    ]
