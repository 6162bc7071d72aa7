"""`saga-ray evaluate`: measure a finished run again and compare with what it stored."""

from __future__ import annotations

import click

from saga_ray.cli.terminal import progress, result, say, scores_line


@click.command("evaluate")
@click.argument("run")
@click.option(
    "--split", type=click.Choice(("test", "validation")), help="[default: the split that the run was measured on]"
)
@click.option("--data-root", metavar="DIR", help="Where the images are now. [default: where they were]")
def command(run: str, split: str | None, data_root: str | None) -> None:
    """Embed the images anew with the encoder of RUN (a run's folder) and recompute its scores; stores nothing.

    The exit code is 1 if the scores differ from those stored by more than rounding.
    """
    from saga_ray.train.remeasure import remeasure

    with progress() as watched:
        measured = remeasure(run, split=split, data_root=data_root, progress=watched)
    result(scores_line(measured.scores))
    if measured.stored is None:
        say(f"{run} was measured on other classes; there is nothing to compare with.")
    elif measured.agrees:
        say(f"Equal to what {run} holds.")
    else:
        say(f"{run} holds other scores: {scores_line(measured.stored)}")
        raise click.exceptions.Exit(1)
