"""`saga-ray study`: several methods side by side and a page about them, or everything that a study file asks for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saga_ray.cli.options import DATA_ROOT, RECIPE, RUNS, SET, configuration, split_words, typed
from saga_ray.cli.terminal import progress, result, say, shell_quoted
from saga_ray.machine import num_cpus

if TYPE_CHECKING:
    from saga_ray.study.plan import Plan
    from saga_ray.study.record import Records

METHODS = ("pretrained", "potential-field", "saga")
METHODS_OF = {
    "demo": ("pretrained", "infonce", "potential-field+pooler", "saga"),
    "folder": ("pretrained", "proxy-anchor", "potential-field", "saga"),
}
"""What `make demo` and `make demo-folder` compare; for other data sets it is `METHODS`."""


PRESETS = ("controls",)
"""Study files of the package, by name; their records go to --runs."""


@click.command("study")
@click.argument("words", nargs=-1, metavar="DATASET|FILE.yaml|controls")
@click.option(
    "--methods", metavar="A,B,...", help="Methods to compare. [default: a few; the first line of output names them]"
)
@click.option("--seeds", type=click.IntRange(1), help="Repetitions of every method. [default: 1]")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps of the methods that train.")
@RECIPE
@DATA_ROOT
@RUNS
@SET
@click.option("--local", is_flag=True, help="On this machine without Ray.")
@click.option("--dataset", metavar="NAME", help="With a file: instead of its data set.")
@click.option("--block", "blocks", multiple=True, metavar="NAME", help="With a file: only this block; may be repeated.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="With a file: runs side by side. [default: cores]")
@click.option("--limit-minutes", type=float, metavar="M", help="With a file: begin no run after M minutes.")
@click.option("--keep-runs", is_flag=True, help="With a file: keep weights and logs of finished runs.")
@click.option("--dry-run", is_flag=True, help="With a file: say what is done and what is open, and run nothing.")
@click.option("--page", is_flag=True, help="With a file: write the page again, and run nothing.")
def command(
    words: tuple[str, ...],
    methods: str | None,
    seeds: int | None,
    steps: int | None,
    recipe: str | None,
    data_root: str | None,
    runs: str,
    assignments: tuple[str, ...],
    local: bool,
    **of_files: Any,
) -> None:
    """Train several methods on DATASET, on one group of Ray workers, and write DIR/index.html about them.

    With FILE.yaml: choose values for every row of a study on validation classes, measure them on test classes, and keep
    a record of each run in a folder beside the file, with a page, results.md. Typed again, it goes on where it stopped.

    \b
    saga-ray study demo --runs runs/demo
    saga-ray study folder --data-root pictures --methods pretrained,proxy-anchor,saga --seeds 3
    saga-ray study sweeps/demo_study.yaml --dry-run
    saga-ray study controls --dataset cub --data-root /data/CUB_200_2011
    """
    name, more = split_words(words, "data set or study file")
    if is_study_file(name):
        refuse(name, "is given with a data set alone", methods=methods, seeds=seeds, steps=steps, recipe=recipe)
        study_from_file(name, [*assignments, *more], data_root, runs, local, **of_files)
        return
    from saga_ray.config import DATASETS
    from saga_ray.config.keys import check_choice

    if sentence := check_choice("data set or study file", name, [*DATASETS, *PRESETS]):
        raise click.UsageError(sentence, click.get_current_context(silent=True))
    refuse(name, "is given with a study file alone", **of_files)
    compare_methods(name, more, methods, seeds or 1, steps, recipe, data_root, runs, assignments, local)


def is_study_file(name: str) -> bool:
    """True for what can only be a file, and for the names of those that come with the package."""
    return name.endswith((".yaml", ".yml")) or name in PRESETS


def refuse(name: str, why: str, **options: object) -> None:
    """Say which options mean nothing here."""
    for option, value in options.items():
        if value:
            shown = {"blocks": "block"}.get(option, option).replace("_", "-")
            raise click.UsageError(f"--{shown}: {why}, not with '{name}'", click.get_current_context(silent=True))


def study_from_file(
    path: str,
    assignments: Sequence[str],
    data_root: str | None,
    runs: str,
    local: bool,
    dataset: str | None,
    blocks: tuple[str, ...],
    jobs: int | None,
    limit_minutes: float | None,
    keep_runs: bool,
    dry_run: bool,
    page: bool,
) -> None:
    """Everything about a study file."""
    from saga_ray.config.keys import check_choice
    from saga_ray.configure import ConfigError, parse_assignments
    from saga_ray.storage import Storage
    from saga_ray.study.file import kept_by_the_file, load_study
    from saga_ray.study.plan import Planner
    from saga_ray.study.record import Records
    from saga_ray.study.run import run_study
    from saga_ray.study.work import identify, steps_done

    overrides = parse_assignments(assignments) | ({} if data_root is None else {"data.root": data_root})
    file = Path(str(files("saga_ray.study.presets").joinpath(f"{path}.yaml"))) if path in PRESETS else Path(path)
    study = load_study(file, dataset=dataset, overrides=overrides)
    if data_root is not None and study.dataset == "demo":
        raise ConfigError(
            f"--data-root {data_root}: {path} is about demo, which is drawn; name yours too, as with --dataset folder"
        )
    for line in kept_by_the_file(study, overrides):
        say(line)
    names = [block.name for block in study.blocks]
    if wrong := [line for name in blocks if (line := check_choice("--block: block", name, names))]:
        raise ConfigError("\n".join(wrong))
    # A file's records lie beside it; the package is no place for those of a preset.
    beside = str(file.with_suffix(""))
    folder = Storage.open(runs).child(f"{path}-{study.dataset}") if path in PRESETS else Storage.open(beside)
    records, planner = Records(folder), Planner(study, identify)
    wanted = blocks or None
    num_jobs = jobs or num_cpus()
    plan = planner.plan(records.get, wanted)
    say(_how_far(plan, records, num_jobs))
    again = ["saga-ray", "study", path, *typed(dataset=dataset, data_root=data_root), *_sets(assignments)]
    if not (dry_run or page):
        folder.check_writable()
        of_study = Storage.open(runs).child(study.name)
        with progress() as shown:
            shown.stage(f"{len(study.rows)} rows on {study.dataset}, {num_jobs} at a time")
            with _hands(local, jobs, num_jobs, of_study.uri, keep_runs, plan) as hands:
                limit_s = None if limit_minutes is None else 60 * limit_minutes
                steps = functools.partial(steps_done, of_study)
                plan = run_study(planner, records, hands, shown, blocks=wanted, limit_s=limit_s, steps_done=steps)
        say(_how_far(plan, records, num_jobs))
    if not dry_run:
        from saga_ray.study.page import write_page

        uri, text = write_page(study, planner, records, shell_quoted(*again))
        if text:
            result(text)
        say(f"The page: {uri}")
    failed = 0 if dry_run or page else _num_failed(plan, records)
    if failed:
        say(f"{failed} {'run' if failed == 1 else 'runs'} failed; the page says why, and the same command tries again")
        raise click.exceptions.Exit(1)


def _num_failed(plan: Plan, records: Records) -> int:
    found = (records.get(task.name) for task in plan.tasks)
    return sum(record is not None and record.status == "failed" for record in found)


def _sets(assignments: Sequence[str]) -> list[str]:
    return [word for text in assignments for word in ("--set", text)]


def _hands(local: bool, jobs: int | None, num_jobs: int, runs_uri: str, keep_runs: bool, plan: Plan) -> Any:
    if local:
        from saga_ray.study.run import local_hands

        return local_hands(num_jobs, runs_uri, keep_runs)
    from saga_ray.on_ray.study import ray_hands

    return ray_hands(jobs, runs_uri, keep_runs, [task.config.resources for task in plan.tasks])


def _how_far(plan: Plan, records: Records, jobs: int) -> str:
    from saga_ray.study.plan import seconds_left
    from saga_ray.study.run import about

    num_open = len(plan.open(records.get))
    failed = _num_failed(plan, records)
    left = seconds_left(plan, records.get, records.all(), jobs)
    num_done = len(plan.tasks) - num_open
    text = f"{num_done} {'run is' if num_done == 1 else 'runs are'} done, {num_open} {'is' if num_open == 1 else 'are'} open"
    text += f" ({failed} of them failed before)" if failed else ""
    text += f", {plan.num_waiting} wait for trials" if plan.num_waiting else ""
    if num_open + plan.num_waiting == 0:
        return f"{text}: the study is complete."
    return f"{text}; " + (
        f"{about(left)} with {jobs} side by side."
        if left is not None
        else "how long they take is known after the first."
    )


def compare_methods(
    dataset: str,
    more: Sequence[str],
    methods: str | None,
    seeds: int,
    steps: int | None,
    recipe: str | None,
    data_root: str | None,
    runs: str,
    assignments: Sequence[str],
    local: bool,
) -> None:
    """Train methods as the recipe says them, and write a page about them."""
    from saga_ray.configure import ConfigError, default_run_name

    names = [name.strip() for name in methods.split(",")] if methods else METHODS_OF.get(dataset, METHODS)
    configs, problems = [], []
    for seed in range(seeds):
        for method in names:
            try:
                configs.append(
                    configuration(
                        dataset,
                        method=method,
                        recipe=recipe,
                        assignments=[*assignments, *more],
                        # A method without training keeps its 0 steps, and its name.
                        shortcuts={
                            "optim.steps": None if method == "pretrained" else steps,
                            "seed": seed,
                            "data.root": data_root,
                        },
                    )
                )
            except ConfigError as error:
                problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    say(f"{len(configs)} runs on {dataset}: {', '.join(names)}; everything goes to {runs}")
    with progress() as shown:
        shown.stage("starting")
        jobs = [(config, default_run_name(config)) for config in configs]
        if local:
            from saga_ray.train.local import run_local

            outcomes = [run_local(config, runs, name, shown) for config, name in jobs]
        else:
            from saga_ray.on_ray.train import Job, run_on_ray

            outcomes = run_on_ray([Job(config, name) for config, name in jobs], runs, shown)
        from saga_ray.storage import Storage
        from saga_ray.train.study_page import StudyRun, outside_note, study_rows, write_study_page

        storage = Storage.open(runs)
        members = [StudyRun(config, outcome) for config, outcome in zip(configs, outcomes, strict=True)]
        options = typed(methods=methods, steps=steps, recipe=recipe, data_root=data_root, runs=runs)
        sets = [word for text in [*assignments, *more] for word in ("--set", text)]
        again = ("saga-ray", "study", dataset, "--seeds", str(seeds + 1), *options, *sets)
        commands = [
            ("The table again", shell_quoted("saga-ray", "leaderboard", dataset, "--runs", runs)),
            ("Another seed", shell_quoted(*again, *(("--local",) if local else ()))),
        ]
        if dataset == "demo":
            commands.append(("Search the loss weights", shell_quoted("saga-ray", "sweep", "sweeps/weights.yaml")))
        page = write_study_page(storage, members, shown, title=f"saga-ray on {dataset}", commands=commands)
    from saga_ray.leaderboard.render import render_table

    result(render_table(study_rows(storage, members)).rstrip())
    if note := outside_note(members):
        say(note)
    say("")
    say(f"The page with table, curves, gallery and the MLLM's answers: {page}")
    say("What to type next:")
    for purpose, line in commands:
        say(f"  {line:60}  # {purpose.lower()}")
