"""`saga-ray data`: which data sets there are, where to get them, whether a copy is usable, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saga_ray.cli.options import DATA_ROOT, SET, configuration, split_words
from saga_ray.cli.sheets import draw_sheets, stage
from saga_ray.cli.terminal import result, say, shell_quoted
from saga_ray.data.splits import SPLITS

if TYPE_CHECKING:
    from saga_ray.config import RunConfig
    from saga_ray.data.inspect.check import Report

ABOUT = {
    "demo": "birds drawn by saga-ray itself; nothing to download",
    "folder": "your own pictures, as DIR/<class>/<image> or in Parquet files",
    "cub": "CUB-200-2011, 200 bird species",
    "cars": "Stanford Cars, 196 models",
    "aircraft": "FGVC-Aircraft, 100 variants",
    "inat-aves": "iNaturalist 2021, the birds",
}
NUM_SHOWN = 10
"""Lines of each list that `check` prints; `--json` has them all."""
NUM_OF_GROUP = 4
"""Images of a group of equal ones that it names."""

DATASET = click.option("--dataset", metavar="NAME", help="Which data set it is. [default: told by the files]")


@click.group("data")
def command() -> None:
    """List the data sets, say where they are to be had, check, prepare and look into one."""


@command.command("list")
def list_() -> None:
    """Every data set that saga-ray reads."""
    for name, words in ABOUT.items():
        result(f"{name:10} {words}")


@command.command("help")
@click.argument("name")
def help_(name: str) -> None:
    """Where the data set NAME is to be had, its files and checksums, and what to do by hand."""
    from saga_ray.data.benchmarks.origins import instructions

    _known(name)
    for line in instructions(name):
        result(line)


@command.command("download")
@click.argument("name")
@click.option("--out", required=True, metavar="DIR", help="Folder for the archives.")
@click.option("--all", "everything", is_flag=True, help="Fetch the files too that are not needed.")
def download_(name: str, out: str, everything: bool) -> None:
    """Fetch the archives of NAME from their owner; goes on where it was interrupted."""
    from saga_ray.data.benchmarks.download import download
    from saga_ray.data.benchmarks.origins import ORIGINS, instructions

    _known(name)
    files = [file for file in ORIGINS[name].files if everything or file.needed] if name in ORIGINS else []
    if not any(file.url for file in files):
        raise ValueError(
            f"{name}: its owner offers no download; `saga-ray data help {name}` says how to get it by hand"
            if name in ORIGINS
            else f"{name}: there is nothing to download; see `saga-ray data help {name}`"
        )
    for file in files:
        try:
            with stage(f"fetching {file.name}") as step:
                path = download(
                    file, Path(out).expanduser(), lambda done, total, step=step: step(done >> 20, total >> 20)
                )
        except ValueError:
            for line in instructions(name):
                say(line)
            raise
        result(str(path))
    say(f"Next: see the steps of `saga-ray data help {name}`")


@command.command("check")
@click.argument("root")
@DATASET
@SET
@click.option("--json", "json_file", metavar="FILE", help="Write everything that was found as JSON.")
def check_(root: str, dataset: str | None, assignments: tuple[str, ...], json_file: str | None) -> None:
    """Is the copy in ROOT usable? Counts its files, decodes every image, looks for duplicates.

    The last line is `DATASET: usable`, `DATASET: partial, REASON; WHAT TO DO` or, with exit code 2, `DATASET: unusable, REASON; WHAT
    TO DO`.
    """
    from saga_ray.configure import parse_assignments
    from saga_ray.data.inspect.check import UNUSABLE, check

    name = _told_or_detected(root, dataset)
    with stage("") as step:
        report = check(name, root, step, assignments=parse_assignments(assignments), announce=step.stage)
    _print_report(report)
    if json_file is not None:
        _write_json(report.as_json(), json_file)
    result(report.line)
    if report.verdict == UNUSABLE:
        raise click.exceptions.Exit(2)


@command.command("prepare")
@click.argument("root")
@click.option("--out", required=True, metavar="DIR", help="New or empty folder for the shards, or an address.")
@DATASET
@SET
@click.option("--shards", type=click.IntRange(min=1), help="Number of files. [default: 3 for each CPU]")
def prepare_(root: str, out: str, dataset: str | None, assignments: tuple[str, ...], shards: int | None) -> None:
    """Write the images in ROOT, as they are, into a few Parquet files that are read from disk, NFS or object storage."""
    from saga_ray.data import load_dataset
    from saga_ray.data.files.places import Place
    from saga_ray.data.shards.manifest import read_manifest
    from saga_ray.data.shards.prepare import prepare

    name = _told_or_detected(root, dataset)
    config = _config(name, root, assignments)
    found = load_dataset(config)
    with stage("writing shards") as step:
        num_written = prepare(found, out, config.data, shards, step)
    if num_written:
        say(f"Wrote {num_written} shards.")
    else:
        num_there = len(read_manifest(Place.open(out)).shards)
        without_effect = (
            "" if shards in (None, num_there) else f"; --shards {shards} changes nothing, delete {out} to write it anew"
        )
        say(f"{out} was finished before, in {num_there} shards{without_effect}.")
    result(f"{found.name} {found.fingerprint} {out}")
    say(
        f"Train with: {shell_quoted('saga-ray', 'train', name, '--data-root', out, *_data_keys(assignments, found.partial))}"
    )


@command.command("stats")
@click.argument("root")
@DATASET
@SET
@click.option("--picture", metavar="FILE", help="Write a PNG with plots.")
def stats(root: str, dataset: str | None, assignments: tuple[str, ...], picture: str | None) -> None:
    """Images per class, sizes, proportions, formats and bytes of the files in ROOT."""
    from saga_ray.data import load_dataset
    from saga_ray.data.inspect.stats import draw, lines, statistics

    found = load_dataset(_lenient_config(_told_or_detected(root, dataset), root, assignments))
    with stage("reading headers") as step:
        numbers = statistics(found, step)
    for line in lines(numbers):
        result(line)
    if picture is not None:
        draw(numbers, picture)
        say(f"Wrote {picture}")


@command.command("show")
@click.argument("words", nargs=-1, metavar="DATASET|ROOT")
@DATA_ROOT
@SET
@click.option("--picture", metavar="FILE", help="Write a PNG with images of some test classes, one class per row.")
@click.option("--out", metavar="DIR", help="Write a PNG for each class, and one of hard pairs.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Whose classes --out draws.")  # fmt: skip
@click.option("--encoder", metavar="RUN", help="Folder of a run whose encoder finds the hard pairs. [default: the demo MLLM's, untrained]")  # fmt: skip
def show(
    words: tuple[str, ...],
    data_root: str | None,
    assignments: tuple[str, ...],
    picture: str | None,
    out: str | None,
    split: str,
    encoder: str | None,
) -> None:
    """Read a data set, count what is in it, and draw it."""
    from saga_ray.data import load_dataset

    word, more = split_words(words, "data set or folder")
    if word in ABOUT or data_root is not None or not ("/" in word or Path(word).exists()):
        # Reading images needs no MLLM: the demo recipe never asks a hub.
        config = configuration(word, recipe="demo", assignments=[*assignments, *more], shortcuts={"data.root": data_root})  # fmt: skip
    else:
        config = _lenient_config(_told_or_detected(word, None), word, [*assignments, *more])
    dataset = load_dataset(config)
    for name in SPLITS:
        table = dataset.split(name)
        result(f"{name:10} {len(table.class_names):6} classes {len(table):8} images")
    result(
        f"fingerprint {dataset.fingerprint}" + (" (partial: counts differ from the owner's)" if dataset.partial else "")
    )
    if out is not None and not dataset.split(split).class_names:
        others = ", ".join(name for name in SPLITS if dataset.split(name).class_names)
        raise ValueError(f"--split {split}: '{dataset.name}' has no classes there to draw; choose one of {others}")
    if picture is not None:
        from saga_ray.data.inspect.contact_sheet import write_contact_sheet

        write_contact_sheet(dataset.test, picture)
        say(f"Wrote {picture}")
    if out is not None:
        draw_sheets(dataset.split(split), Path(out).expanduser(), encoder, config)


def _known(name: str) -> None:
    from saga_ray.config.keys import check_choice

    if problem := check_choice("data set", name, ABOUT):
        raise ValueError(problem)


def _told_or_detected(root: str, dataset: str | None) -> str:
    from saga_ray.data.inspect.detect import detect

    if not root.strip():
        raise ValueError("ROOT: is empty; name the folder of the images")
    if dataset is not None:
        _known(dataset)
    if "demo" in (dataset, root):
        raise ValueError(
            "demo: draws its pictures itself and lies in no folder; look at it with `saga-ray data show demo`"
        )
    if dataset is not None:
        return dataset
    found = detect(root)
    missing = f", but {', '.join(found.missing)} not found" if found.missing else ""
    say(f"{root}: looks like {found.dataset} ({found.layout}{missing})")
    return found.dataset


def _config(name: str, root: str, assignments: Any) -> RunConfig:
    return configuration(name, recipe="demo", assignments=assignments, shortcuts={"data.root": root})


def _data_keys(assignments: tuple[str, ...], partial: bool) -> list[str]:
    """The `--set` words without which a run would not have the data that was prepared with these assignments."""
    values = {key.strip(): value for key, _, value in (text.partition("=") for text in assignments)}
    kept = {key: value for key, value in values.items() if key.startswith("data.") and key != "data.root"}
    if partial:
        kept.setdefault("data.verify_counts", "false")
    return [word for key, value in kept.items() for word in ("--set", f"{key}={value}")]


def _lenient_config(name: str, root: str, assignments: Any) -> RunConfig:
    """For looking only: a partial copy may be looked at without saying that it is one."""
    from saga_ray.configure import parse_assignments

    lenient = {} if "data.verify_counts" in parse_assignments(assignments) else {"data.verify_counts": False}
    return configuration(name, recipe="demo", assignments=assignments, shortcuts={"data.root": root, **lenient})


def _print_report(report: Report) -> None:
    for split, (num_classes, num_images) in report.counts.items():
        result(f"{split:12}{num_classes:9,} classes{num_images:11,} images")
    if report.fingerprint:
        result(f"fingerprint {report.fingerprint}")
    across = f" ({report.num_equal_across} across classes or splits)" if report.num_equal_across else ""
    _print_list("cannot be decoded", [f"{image} ({split}): {why}" for split, image, why in report.broken])
    _print_list(f"groups of equal files{across}", [_group_line(group) for group in report.equal])
    near = [f"{a} ~ {b} ({distance} of 64 bits differ)" for a, b, distance in report.near]
    _print_list("look like an image of another split", near)
    for kind in dict.fromkeys(one.kind for one in report.odd):
        _print_list(f"odd ({kind})", [f"{one.image}: {one.what}" for one in report.odd if one.kind == kind])
    for warning in report.warnings:
        result(f"warning: {warning}")


def _group_line(group: list[str]) -> str:
    more = f" = ... ({len(group):,} in all; --json FILE has them all)" if len(group) > NUM_OF_GROUP else ""
    return " = ".join(group[:NUM_OF_GROUP]) + more


def _print_list(title: str, lines: list[str]) -> None:
    if not lines:
        return
    result(f"{len(lines):,} {title}:")
    for line in lines[:NUM_SHOWN]:
        result(f"  {line}".replace("\n", "?"))
    if len(lines) > NUM_SHOWN:
        result(f"  and {len(lines) - NUM_SHOWN:,} more; --json FILE has them all")


def _write_json(value: dict[str, Any], path: str) -> None:
    from saga_ray.storage import Storage

    target = Path(path).expanduser().resolve()
    try:
        Storage.open(target.parent).write(target.name, json.dumps(value, indent=2).encode())
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written ({error.strerror}); name another file") from None
