"""`saga-ray leaderboard`: the rows of a data set, ranked."""

from __future__ import annotations

import os
import sys

import click

from saga_ray.cli.options import RUNS, typed
from saga_ray.cli.terminal import say, shell_quoted

FORMATS = ("table", "json", "csv", "md", "html")


@click.command("leaderboard")
@click.argument("dataset")
@RUNS
@click.option("--split", type=click.Choice(("test", "validation")), default="test", show_default=True)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
def command(dataset: str, runs: str, split: str, form: str) -> None:
    """Rank the rows of DATASET: mean over seeds, interval over classes, paired difference to the best baseline."""
    from saga_ray.config import DATASETS
    from saga_ray.config.keys import check_choice
    from saga_ray.configure import ConfigError

    if problem := check_choice("data set", dataset, DATASETS):
        raise ConfigError(problem)
    from saga_ray.leaderboard.board import leaderboard
    from saga_ray.leaderboard.render import render_csv, render_html, render_json, render_markdown, render_table
    from saga_ray.leaderboard.store import ResultStore
    from saga_ray.storage import Storage

    rows = leaderboard(ResultStore(Storage.open(runs)).load(warn=say), dataset, split, warn=say)
    if form == "table":
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        width = os.get_terminal_size().columns if sys.stdout.isatty() else None
        text = render_table(rows, width=width, color=color)
    else:
        render = {"json": render_json, "csv": render_csv, "md": render_markdown, "html": render_html}[form]
        text = render(rows)
    sys.stdout.write(text)
    if not rows:
        example = ["saga-ray", "train", dataset, *typed(data_root=None if dataset == "demo" else "DIR", runs=runs)]
        example += ["--set", "evaluation.split=validation"] if split == "validation" else []
        say(f"No {split} results of {dataset} in {runs}; make one with: {shell_quoted(*example)}")
