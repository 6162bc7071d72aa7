"""`saga-ray mllm`: put the question to the frozen MLLM by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from saga_ray.cli.options import SET, configuration
from saga_ray.cli.terminal import result, say
from saga_ray.storage import Storage

if TYPE_CHECKING:
    from saga_ray.train.showcase import Asked


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
@click.option(
    "--out",
    metavar="FILE.png",
    type=click.Path(dir_okay=False),
    help="Draw where the words of the first answer looked.",
)
@SET
def try_(
    first: str, second: str, dataset: str, num_answers: int, out: str | None, assignments: tuple[str, ...]
) -> None:
    """Show A.jpg and B.jpg to the frozen MLLM through its own vision tower and print what it answers.

    One line per answer: verdict, exact probability of "yes" after what that answer wrote before its verdict, text.
    """
    if out is not None and not out.lower().endswith(".png"):
        raise ValueError(f"--out {out}: is no name of a PNG file; let it end in .png")
    config = configuration(
        dataset,
        assignments=assignments,
        shortcuts={"grpo.group_size": num_answers, "data.root": None if dataset == "demo" else "."},
    )
    from saga_ray.train.showcase import ask_about_files

    say("Loading the MLLM ...")
    asked = ask_about_files(config, first, second)
    say(f"{'verdict':10}  {'P(yes)':>8}  answer")
    for text, verdict, probability in zip(asked.texts, asked.verdicts, asked.same_probabilities, strict=True):
        shown = "-" if probability is None else "<0.001" if probability < 0.001 else f"{probability:.3f}"
        result(f"{ {1: 'same', 0: 'different', -1: 'no verdict'}[verdict]:10}  {shown:>8}  {text}")
    if config.mllm.path is None:
        say(
            "The bundled MLLM knows drawn birds only (`saga-ray data show demo`): of other pictures it says nothing that counts."
        )
    if out is not None:
        _draw(asked, out, (first, second), config.alignment.layer_depth)


@command.command("families")
def families() -> None:
    """Print the families that are supported, with what the tests measured on small models, and those that are refused."""
    from saga_ray.mllm.families.table import capabilities, families_table

    told = capabilities()
    say(f"Measured on small random models with transformers {told['transformers']} and torch {told['torch']}:")
    result(families_table(told))


def _draw(asked: Asked, out: str, names: tuple[str, str], depth: float) -> None:
    """Both pictures, and both lit by the attention that they got."""
    from saga_ray.leaderboard.figures import to_png
    from saga_ray.leaderboard.plots import attention_figure

    if asked.attention is None:
        raise ValueError(
            f"--out {out}: the first answer describes nothing, so there is no attention to draw; try --set prompt.answers=template"
        )
    first, second = asked.images_NHWC
    titles = tuple("/".join(Path(name).parts[-2:]) for name in names)
    figure = attention_figure((first, second), asked.attention, asked.grid_hw, asked.texts[0], titles)
    target = Path(out).resolve()
    Storage.open(target.parent).write(target.name, to_png(figure))
    say(f"Drawn: {out}, the attention of the first answer's descriptions at relative depth {depth:.2f}")
