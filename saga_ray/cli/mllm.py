"""`saga-ray mllm`: put the question to the frozen MLLM by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saga_ray.cli.options import SET, check_target, configuration, split_assignments
from saga_ray.cli.terminal import result, say
from saga_ray.storage import Storage

if TYPE_CHECKING:
    from saga_ray.config import RunConfig
    from saga_ray.train.showcase import Asked


@click.group("mllm")
def command() -> None:
    """Ask the frozen MLLM about two pictures; see which families can be used."""


@command.command("try")
@click.argument("words", metavar="[A.jpg B.jpg]", nargs=-1)
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
def try_(words: tuple[str, ...], dataset: str, num_answers: int, out: str | None, assignments: tuple[str, ...]) -> None:
    """Show A.jpg and B.jpg to the frozen MLLM through its own vision tower and print what it answers.

    Without pictures the bundled MLLM is shown two neighbouring birds, others for another `--set seed=1`: clean ones, as it knows
    them, or, if a key of `data` is set (`--set data.shift=0.45`), as that demo world shows them.

    One line per answer: verdict, exact probability of "yes" after what that answer wrote before its verdict, text.
    """
    files, more = split_assignments(words)
    if len(files) not in (0, 2):
        raise ValueError(f"mllm try: {len(files)} pictures are named; give two, or none for two drawn birds")
    if out is not None and not out.lower().endswith(".png"):
        raise ValueError(f"--out {out}: is no name of a PNG file; let it end in .png")
    check_target(out, "--out")
    config = configuration(
        dataset,
        assignments=(*assignments, *more),
        shortcuts={"grpo.group_size": num_answers, "data.root": None if dataset == "demo" else "."},
    )
    if not files and config.mllm.path is not None:
        raise ValueError("mllm try: no picture is named; give two, A.jpg B.jpg")
    import numpy as np

    from saga_ray.data.pixels.images import decode

    # What cannot be read shows before anything is loaded.
    images = [decode(name, config.data.image_size) for name in files]
    say("Loading the MLLM ...")
    from saga_ray.data.demo.world import two_neighbours
    from saga_ray.train.showcase import ask_about

    truths: list[dict[str, str]] = [{}, {}]
    if not files:
        as_in_world = any(each.startswith("data.") for each in (*assignments, *more))
        images, truths = two_neighbours(config.data, config.seed, clean=not as_in_world)
    asked = ask_about(config, np.stack(images))
    say(f"{'verdict':10}  {'P(yes)':>8}  answer")
    for text, verdict, probability in zip(asked.texts, asked.verdicts, asked.same_probabilities, strict=True):
        shown = "-" if probability is None else "<0.001" if probability < 0.001 else f"{probability:.3f}"
        result(f"{_VERDICTS[verdict]:10}  {shown:>8}  {text}")
    _say_side_by_side(asked.texts[0], config, truths)
    if config.mllm.path is None and files:
        say(
            "The bundled MLLM knows drawn birds as they were drawn (`saga-ray mllm try` alone shows it two, "
            "`saga-ray data show demo --set data.shift=0` many): of other pictures it says nothing that counts."
        )
    if out is not None:
        _draw(asked, out, files or ["bird 1", "bird 2"], config.alignment.layer_depth)


_VERDICTS = {1: "same", 0: "different", -1: "no verdict"}


def _say_side_by_side(text: str, config: RunConfig, truths: Sequence[Mapping[str, str]]) -> None:
    """The first answer's words about both pictures, attribute by attribute, if it described them; wrong ones with the truth."""
    from saga_ray.mllm.answers import parse_answer
    from saga_ray.scorer.prompt import run_prompt

    first, second = parse_answer(text, run_prompt(config).verdict_key).descriptions(text)
    names = list(dict.fromkeys([*first, *second]))
    if not names:
        return
    rows = [("first answer", "picture 1", "picture 2")]
    rows += [(name, first.get(name, "-"), second.get(name, "-")) for name in names]
    shown = [rows[0]] + [
        (name, *(_beside_truth(said, truth.get(name)) for said, truth in zip(both, truths, strict=True)))
        for name, *both in rows[1:]
    ]
    wide, middle = (max(len(row[column]) for row in shown) for column in (0, 1))
    say()
    for (name, one, two), (_, said, of_other) in zip(shown, rows, strict=True):
        mark = "  differs" if name in names and said != of_other else ""
        say(f"{name:{wide}}  {one:{middle}}  {two}{mark}")


def _beside_truth(said: str, truth: str | None) -> str:
    return said if truth in (None, said) else f"{said} (is {truth})"


@command.command("families")
def families() -> None:
    """Print the families that are supported, with what the tests measured on small models, and those that are refused."""
    from saga_ray.mllm.families.table import capabilities, families_table

    told = capabilities()
    say(f"Measured on small random models with transformers {told['transformers']} and torch {told['torch']}:")
    result(families_table(told))


def _draw(asked: Asked, out: str, names: Sequence[str], depth: float) -> None:
    """Both pictures, and both lit by the attention that they got."""
    from saga_ray.leaderboard.figures import to_png
    from saga_ray.leaderboard.plots import attention_figure

    if asked.attention is None:
        raise ValueError(
            f"--out {out}: the first answer describes nothing, so there is no attention to draw; try --set prompt.answers=template"
        )
    first, second = asked.images_NHWC
    titles = ("/".join(Path(names[0]).parts[-2:]), "/".join(Path(names[1]).parts[-2:]))
    figure = attention_figure((first, second), asked.attention, asked.grid_hw, asked.texts[0], titles)
    target = Path(out).resolve()
    try:
        Storage.open(target.parent).write(target.name, to_png(figure))
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror or error}); name another file") from None
    say(f"Drawn: {out}, the attention of the first answer's descriptions at relative depth {depth:.2f}")
