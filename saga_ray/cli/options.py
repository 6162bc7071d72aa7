"""Options that several verbs share, and what they mean for a configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from saga_ray.config import RunConfig

Function = TypeVar("Function", bound=Callable[..., Any])

DATASET_HELP = "demo, folder, cub, cars, aircraft or inat-aves"


def _say_if_thrown_away(context: click.Context, option: click.Parameter, runs: str) -> str:
    """A submitted job works in an unpacked copy of its working directory: what it leaves there is easily lost."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in runs and not os.path.isabs(runs):
        click.echo(
            f"--runs {runs}: lies in this job's copy of its working directory, {os.path.abspath(runs)}, which Ray removes some "
            f"day; give an absolute folder that all nodes share, or a URI, to keep the run and to go on with it",
            err=True,
        )
    return runs


RUNS = click.option(
    "--runs",
    default="runs",
    show_default=True,
    callback=_say_if_thrown_away,
    metavar="DIR",
    help="Folder of all runs and results, or a URI such as s3://bucket/runs.",
)
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one value; may be repeated."
)
DATA_ROOT = click.option("--data-root", metavar="DIR", help="Folder of the images (not needed for demo).")
RECIPE = click.option("--recipe", metavar="{paper,demo}", help="Base values; demo for demo and folder, else paper.")
METHOD = click.option("--method", metavar="NAME", help="Preset on top of the recipe. [default: saga]")
CONFIG_FILE = click.option("--config", "config_file", metavar="FILE", help="YAML file with values to change.")


def config_options(function: Function) -> Function:
    """The options that decide a configuration."""
    for option in (SET, CONFIG_FILE, DATA_ROOT, RECIPE, METHOD):
        function = option(function)
    return function


def _is_assignment(word: str) -> bool:
    """True for key=value; a path may hold a = as well, behind a slash or as a file that is there."""
    return re.match(r"[A-Za-z0-9_.]+=", word) is not None and not os.path.isfile(word)


def split_words(words: Iterable[str], what: str) -> tuple[str, list[str]]:
    """The one argument of a verb, and the key=value words that follow `--set a=1 b=2`."""
    names, assignments = split_assignments(words)
    if len(names) != 1:
        found = f"got {', '.join(names)}" if names else "it is missing"
        raise click.UsageError(f"Expected one {what}, but {found}.", click.get_current_context(silent=True))
    return names[0], assignments


def split_assignments(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The arguments of a verb, and the key=value words that follow `--set a=1 b=2`."""
    words = list(words)
    return [word for word in words if not _is_assignment(word)], [word for word in words if _is_assignment(word)]


def check_target(path: str | None, option: str) -> None:
    """Refuse a place that cannot be written before anything takes time."""
    if path is None:
        return
    from saga_ray.configure import ConfigError

    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise ConfigError(f"{option} {path}: cannot be written there; name a file in a folder that exists")


def typed(**options: object) -> list[str]:
    """Options that were given, as they can be typed again."""
    given = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items() if value is not None)
    return [word for pair in given for word in pair]


def configuration(
    dataset: str,
    *,
    method: str | None = None,
    recipe: str | None = None,
    config_file: str | None = None,
    assignments: Iterable[str] = (),
    shortcuts: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Combine everything that was typed.

    Args:
        shortcuts: Options of their own, such as `--seed 1`, as dotted keys; None values were not given.

    Raises:
        ConfigError: every mistake at once.
    """
    from saga_ray.configure import ConfigError, parse_assignments, resolve
    from saga_ray.yaml_text import load_yaml

    overrides = parse_assignments(assignments)
    problems = []
    for key, value in (shortcuts or {}).items():
        if value is None:
            continue
        if key in overrides and overrides[key] != value:
            problems.append(f"--set {key}={overrides[key]}: another option says {value}; give only one of the two")
        overrides[key] = value
    values = load_yaml(config_file) if config_file else None
    try:
        config = resolve(
            dataset,
            method=method,
            recipe=recipe,
            file_values=values,
            overrides=overrides,
            source=config_file or "config",
        )
    except ConfigError as error:
        problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(problems))
    return config
