"""`saga-ray data`: which data sets there are, and what is in one."""

from __future__ import annotations

import click

from saga_ray.cli.options import DATA_ROOT, SET, configuration, split_words
from saga_ray.cli.terminal import result, say

ABOUT = {
    "demo": "birds drawn by saga-ray itself; nothing to download",
    "folder": "your own pictures, as DIR/<class>/<image>",
    "cub": "CUB-200-2011, 200 bird species",
    "cars": "Stanford Cars, 196 models",
    "aircraft": "FGVC-Aircraft, 100 variants",
    "inat-aves": "iNaturalist 2021, the birds",
}


@click.group("data")
def command() -> None:
    """List the data sets, look into one."""


@command.command("list")
def list_() -> None:
    """Every data set that saga-ray reads."""
    for name, words in ABOUT.items():
        result(f"{name:10} {words}")


@command.command("show")
@click.argument("words", nargs=-1, metavar="DATASET")
@DATA_ROOT
@SET
@click.option("--picture", metavar="FILE", help="Write a PNG with images of some test classes, one class per row.")
def show(words: tuple[str, ...], data_root: str | None, assignments: tuple[str, ...], picture: str | None) -> None:
    """Read DATASET, check it, and count what is in it."""
    name, more = split_words(words, "data set")
    # Reading images needs no MLLM: the demo recipe never asks a hub.
    config = configuration(name, recipe="demo", assignments=[*assignments, *more], shortcuts={"data.root": data_root})
    from saga_ray.data import load_dataset

    dataset = load_dataset(config)
    for split in ("train", "validation", "test"):
        table = dataset.split(split)
        result(f"{split:10} {len(table.class_names):6} classes {len(table):8} images")
    result(
        f"fingerprint {dataset.fingerprint}" + (" (partial: counts differ from the owner's)" if dataset.partial else "")
    )
    if picture is not None:
        from saga_ray.data.contact_sheet import write_contact_sheet

        write_contact_sheet(dataset.test, picture)
        say(f"Wrote {picture}")
