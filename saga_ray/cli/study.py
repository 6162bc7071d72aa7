"""`saga-ray study`: several methods side by side, and a page about them."""

from __future__ import annotations

import click

from saga_ray.cli.options import DATA_ROOT, RECIPE, RUNS, SET, configuration, split_words, typed
from saga_ray.cli.terminal import progress, result, say, shell_quoted

METHODS_OF = {
    "demo": ("pretrained", "potential-field", "saga"),
    "folder": ("pretrained", "proxy-anchor", "potential-field", "saga"),
}
"""What `make demo` and `make demo-folder` compare; other data sets get the first list."""


@click.command("study")
@click.argument("words", nargs=-1, metavar="DATASET")
@click.option(
    "--methods", metavar="A,B,...", help="Methods to compare. [default: pretrained, potential-field and saga]"
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Repetitions of every method.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps of the methods that train.")
@RECIPE
@DATA_ROOT
@RUNS
@SET
@click.option("--local", is_flag=True, help="Everything in this process; Ray is not needed.")
def command(
    words: tuple[str, ...],
    methods: str | None,
    seeds: int,
    steps: int | None,
    recipe: str | None,
    data_root: str | None,
    runs: str,
    assignments: tuple[str, ...],
    local: bool,
) -> None:
    """Train several methods on DATASET, on one group of Ray workers, and write DIR/index.html about them.

    \b
    saga-ray study demo --runs runs/demo
    saga-ray study folder --data-root pictures --methods pretrained,proxy-anchor,saga --seeds 3
    """
    dataset, more = split_words(words, "data set")
    from saga_ray.configure import ConfigError, default_run_name

    names = [name.strip() for name in methods.split(",")] if methods else METHODS_OF.get(dataset, METHODS_OF["demo"])
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
