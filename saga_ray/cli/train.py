"""`saga-ray train`: one run, on Ray or in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from saga_ray.cli.options import DATASET_HELP, RUNS, config_options, configuration, split_words, typed
from saga_ray.cli.terminal import progress, result, say, scores_line, shell_quoted

if TYPE_CHECKING:
    from saga_ray.config import RunConfig
    from saga_ray.train.loop import TrainResult
    from saga_ray.train.progress import Progress


_OF_THE_QUESTION = ("grpo.", "prompt.", "scorer.", "alignment.", "consensus.", "loss.weights.")
"""Begin keys that a run without the MLLM reads nothing of."""


@click.command("train")
@click.argument("words", nargs=-1, metavar="DATASET")
@config_options
@click.option("--local", is_flag=True, help="Everything in this process; Ray is not needed.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps, instead of the recipe's epochs.")
@click.option("--seed", type=int, metavar="N", help="Seed of the run. [default: 0]")
@RUNS
@click.option("--name", metavar="NAME", help="Name of the run's folder. [default: label and seed]")
def command(
    words: tuple[str, ...],
    method: str | None,
    recipe: str | None,
    data_root: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    local: bool,
    steps: int | None,
    seed: int | None,
    runs: str,
    name: str | None,
) -> None:
    """Train one encoder on DATASET and add its row to the leaderboard.

    DATASET is demo, folder, cub, cars, aircraft or inat-aves. The same command typed again goes on where it stopped; a
    finished run is left as it is.

    \b
    saga-ray train demo
    saga-ray train demo --method potential-field --seed 1
    saga-ray train folder --data-root pictures --set optim.epochs=5 grpo.group_size=4
    """
    dataset, more = split_words(words, f"data set ({DATASET_HELP})")
    config = configuration(
        dataset,
        method=method,
        recipe=recipe,
        config_file=config_file,
        assignments=[*assignments, *more],
        shortcuts={"optim.steps": steps, "seed": seed, "data.root": data_root},
    )
    from saga_ray.configure import check_run_name, default_run_name, label

    name = default_run_name(config) if name is None else check_run_name(name)
    where = "in this process" if local else "on Ray"
    say(f"{label(config)} on {config.dataset}, seed {config.seed}, {where}; run folder {runs}/{name}")
    with progress() as shown:
        shown.stage("starting")
        outcome = train_one(config, runs, name, local, shown)
    report(outcome)
    say(f"Next: {shell_quoted('saga-ray', 'leaderboard', config.dataset, '--runs', runs)}")
    if config.method == "saga" and not outcome.was_finished:
        options = typed(recipe=recipe, data_root=data_root, config=config_file, steps=steps, seed=seed, runs=runs)
        read = [text for text in [*assignments, *more] if not text.startswith(_OF_THE_QUESTION)]
        sets = (word for text in read for word in ("--set", text))
        baseline = ("saga-ray", "train", dataset, "--method", "potential-field", *options, *sets)
        say(f"  or: {shell_quoted(*baseline, *(('--local',) if local else ()))}")


def train_one(config: RunConfig, runs: str, name: str, local: bool, shown: Progress) -> TrainResult:
    """Run in this process or on Ray."""
    if local:
        from saga_ray.train.local import run_local

        return run_local(config, runs, name, shown)
    from saga_ray.on_ray.train import Job, run_on_ray

    return run_on_ray([Job(config, name)], runs, shown)[0]


def report(outcome: TrainResult) -> None:
    """Say what became of a run."""
    if outcome.was_finished:
        say(f"{outcome.uri} was finished before; nothing was done. Its {outcome.row['split']} scores, in percent:")
    else:
        steps = f"{outcome.num_steps} step{'s' if outcome.num_steps != 1 else ''}"
        say(f"{outcome.uri} is finished after {steps}; its {outcome.row['split']} scores, in percent:")
    if outcome.stored == "conflict":
        say("The board already holds another result under this key, which stays; see the warning above.")
    result(scores_line(outcome.scores))
