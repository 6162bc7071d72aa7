"""`saga-ray mllm`: put the question to the frozen MLLM by hand."""

from __future__ import annotations

import click

from saga_ray.cli.options import SET, configuration
from saga_ray.cli.terminal import result, say


@click.group("mllm")
def command() -> None:
    """Ask the frozen MLLM about two pictures; see which families can be used."""


@command.command("try")
@click.argument("first", metavar="A.jpg", type=click.Path(exists=True, dir_okay=False))
@click.argument("second", metavar="B.jpg", type=click.Path(exists=True, dir_okay=False))
@click.option("--dataset", default="demo", show_default=True, help="Whose prompt is used.")
@click.option(
    "--answers", "num_answers", type=click.IntRange(2), default=4, show_default=True, help="How many to sample."
)
@SET
def try_(first: str, second: str, dataset: str, num_answers: int, assignments: tuple[str, ...]) -> None:
    """Show A.jpg and B.jpg to the frozen MLLM through its own vision tower and print what it answers."""
    config = configuration(
        dataset,
        assignments=assignments,
        shortcuts={"grpo.group_size": num_answers, "data.root": None if dataset == "demo" else "."},
    )
    from saga_ray.train.showcase import ask_about_files

    say("Loading the MLLM ...")
    for text, verdict in ask_about_files(config, first, second):
        result(f"{ {1: 'same', 0: 'different', -1: 'no verdict'}[verdict]:10}  {text}")


@command.command("families")
def families() -> None:
    """Print the families that are supported, with what the tests measured on small models, and those that are refused."""
    from saga_ray.mllm.families.table import capabilities, families_table

    told = capabilities()
    say(f"Measured on small random models with transformers {told['transformers']} and torch {told['torch']}:")
    result(families_table(told))
