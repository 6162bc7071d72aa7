"""`saga-ray serve`: a frozen MLLM for many runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from saga_ray.cli.options import RECIPE, SET, split_words
from saga_ray.cli.terminal import progress, result, say, shell_quoted

_OF_THE_SERVICE = {
    "resources.num_scorers",
    "resources.max_scorers",
    "resources.cpus_per_scorer",
    "resources.gpus_per_scorer",
}
_PATHS = ("mllm.path", "prompt.vocabulary", "data.root", "data.taxonomy", "encoder.weights")


@click.command("serve")
@click.argument("words", nargs=-1, metavar="")
@click.option("--mllm", metavar="DIR", help="Folder or hub id of the MLLM. [default: the recipe's]")
@click.option("--dataset", default="demo", show_default=True, metavar="NAME", help="Whose prompt is made ready.")
@RECIPE
@SET
@click.option("--name", metavar="NAME", help="Name of the service. [default: saga-ray-scorer]")
@click.option("--stop", "stop_name", metavar="NAME", help="End the service of this name instead.")
def command(
    words: tuple[str, ...],
    mllm: str | None,
    dataset: str,
    recipe: str | None,
    assignments: tuple[str, ...],
    name: str | None,
    stop_name: str | None,
) -> None:
    """Keep a frozen MLLM ready for several runs; each joins with the words that are printed, and leaves it running.

    On a cluster (RAY_ADDRESS, or a submitted job) the command returns when the service is ready. Otherwise it starts Ray
    on this machine and stays until Ctrl-C or `saga-ray serve --stop NAME` elsewhere, with the RAY_ADDRESS that it printed.

    \b
    saga-ray serve --dataset cub --mllm /models/Qwen3-VL-8B-Instruct --set resources.gpus_per_scorer=1 resources.max_scorers=4
    RAY_ADDRESS=... saga-ray serve --stop saga-ray-scorer
    """
    # `--set a=1 b=2`: what follows stands where other verbs have their data set.
    _, more = split_words((dataset, *words), "data set")
    if stop_name is not None:
        _stop(stop_name)
        return
    from saga_ray.configure import parse_assignments
    from saga_ray.on_ray.cluster import connect
    from saga_ray.on_ray.serve import serving_config
    from saga_ray.on_ray.standing import SERVICE_NAME, start_service
    from saga_ray.scorer.prompt import run_prompt

    name = _checked(name or SERVICE_NAME)
    overrides = parse_assignments([*assignments, *more])
    if mllm is not None:
        overrides["mllm.path"] = mllm
    config = serving_config(dataset, recipe=recipe, overrides=overrides)
    run_prompt(config)  # what is wrong with the folder shows here
    with contextlib.ExitStack() as stack:
        with progress() as shown:
            shown.stage("starting Ray")
            cluster = stack.enter_context(connect([config]))
            shown.stage("loading the frozen MLLM")
            start_service(config, cluster, name, shown.stage)
        _say_how_to_join(name, joining(name, dataset, recipe, overrides), cluster.address, cluster.started)
        if cluster.started:
            _wait(name)


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ValueError(f"--name {name}: use small letters, digits and hyphens, at most 63 of them")
    return name


def joining(name: str, dataset: str, recipe: str | None, overrides: Mapping[str, Any]) -> list[str]:
    """Words of a run that means what the service was started for: all that was set, but what only the service asks of Ray.

    Paths are made absolute where they exist, since the run may be started elsewhere.
    """
    told = {"scorer.service": name, **{key: value for key, value in overrides.items() if key not in _OF_THE_SERVICE}}
    for key in _PATHS:
        if isinstance(told.get(key), str) and os.path.exists(os.path.expanduser(told[key])):
            told[key] = os.path.abspath(os.path.expanduser(told[key]))
    words = ["saga-ray", "train", dataset]
    if dataset != "demo" and "data.root" not in told:
        words += ["--data-root", "DIR"]
    if recipe is not None:
        words += ["--recipe", recipe]
    # JSON is YAML: whatever was typed is read back as it was.
    sets = [f"{key}={value if _reads_back(value) else json.dumps(value)}" for key, value in told.items()]
    return [*words, "--set", *sets]


def _reads_back(value: Any) -> bool:
    """True for a word that stays itself when it is read as YAML."""
    from saga_ray.configure import ConfigError, parse_assignments

    try:
        return isinstance(value, str) and parse_assignments([f"key={value}"]) == {"key": value}
    except ConfigError:
        return False


def _say_how_to_join(name: str, words: Sequence[str], address: str, started: bool) -> None:
    say(f"{name} is ready. A run joins it with `--set scorer.service={name}`, and leaves it running; for instance:")
    at = f"RAY_ADDRESS={address} " if started or os.environ.get("RAY_ADDRESS") else ""
    result(at + shell_quoted(*words))
    stop = at + shell_quoted("saga-ray", "serve", "--stop", name)
    say(f"End it with Ctrl-C, or `{stop}`." if started else f"End it with `{stop}`.")


def _wait(name: str) -> None:
    """Until it is stopped from elsewhere, or Ctrl-C."""
    from saga_ray.on_ray.standing import wait_until_stopped

    try:
        wait_until_stopped(name)
        say(f"{name} was stopped.")
    except KeyboardInterrupt:
        say(f"{name} is stopped.")


def _stop(name: str) -> None:
    if not (os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID")):
        raise ValueError(
            f"--stop {name}: on which cluster is not said; set RAY_ADDRESS to the address that `saga-ray serve` printed"
        )
    from saga_ray.on_ray.cluster import connect
    from saga_ray.on_ray.standing import stop_service

    with connect([]):
        stop_service(name)
    say(f"{name} is stopped.")
