"""`saga-ray sweep`: search the values of a sweep file with Ray Tune and Optuna."""

from __future__ import annotations

import click

from saga_ray.cli.options import RUNS, SET, split_words
from saga_ray.cli.terminal import progress, result, say, scores_line, shell_quoted


@click.command("sweep")
@click.argument("words", nargs=-1, metavar="FILE")
@click.option("--dataset", metavar="NAME", help="Instead of the file's data set.")
@click.option("--trials", type=int, metavar="N", help="Instead of the file's number of trials.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps of every trial.")
@RUNS
@SET
def command(
    words: tuple[str, ...],
    dataset: str | None,
    trials: int | None,
    steps: int | None,
    runs: str,
    assignments: tuple[str, ...],
) -> None:
    """Run the search that FILE describes; trials are judged on validation classes, the best one on test classes.

    The same command typed again goes on where it stopped.

    \b
    saga-ray sweep sweeps/weights.yaml
    saga-ray sweep sweeps/weights.yaml --trials 48 --set grpo.temperature=1.0
    """
    path, more = split_words(words, "sweep file")
    from saga_ray.configure import parse_assignments
    from saga_ray.on_ray.sweep import load_sweep

    overrides = parse_assignments([*assignments, *more])
    sweep = load_sweep(path, dataset=dataset, trials=trials, steps=steps, overrides=overrides)
    say(f"{sweep.trials} trials of {sweep.method} on {sweep.dataset}; results go to {runs}")
    from saga_ray.on_ray.tune import run_sweep

    with progress() as shown:
        outcome = run_sweep(sweep, runs, shown)
    values = ", ".join(f"{key}={value}" for key, value in outcome.best.values.items())
    say(
        f"Best of {len(outcome.trials)} trials on the validation classes: {sweep.metric} {outcome.best.score:.4f} with {values}."
    )
    say(f"All trials, a plot and best.yaml are in {outcome.uri}. The best one's test scores, in percent:")
    result(scores_line(outcome.test.scores))
    say(f"Next: {shell_quoted('saga-ray', 'leaderboard', sweep.dataset, '--runs', runs, '--split', 'validation')}")
