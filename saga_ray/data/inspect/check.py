"""Is a data set usable? Counts, every image decoded, duplicates within and across splits, odd files; and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.data.files.sources import FolderSource
from saga_ray.data.inspect.duplicates import equal_files, near_duplicates
from saga_ray.data.inspect.scan import Seen, scan
from saga_ray.data.pixels.images import EXTENSIONS
from saga_ray.data.splits import SPLITS
from saga_ray.types import Dataset, OnProgress

USABLE, PARTIAL, UNUSABLE = "usable", "partial", "unusable"
MIN_SIDE = 32
"""Pixels; smaller pictures are odd, as are those longer than `MAX_ASPECT` times their width or the other way round."""
MAX_ASPECT = 4.0
_ENDINGS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",), "BMP": (".bmp",)}


NOT_LISTED = "not listed"
ODD_KINDS = (
    "named after another format", "small", "long", "unusual pixels", "several frames", "turned by EXIF", NOT_LISTED,
)  # fmt: skip


class Odd(NamedTuple):
    """Something that changes no verdict and that one may want to know."""

    kind: str
    """One of `ODD_KINDS`."""
    image: str
    """Image or file."""
    what: str


@dataclass
class Report:
    """What a check found."""

    dataset: str
    verdict: str
    reason: str = ""
    """Why it is not simply usable, and what to do."""
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Split to (classes, images)."""
    fingerprint: str = ""
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    """(split, image, why)."""
    equal: list[list[str]] = field(default_factory=list)
    """Images whose files are the same, bit for bit, as `split: image (class)`."""
    num_equal_across: int = 0
    """Groups of them that stand in more than one class or split."""
    near: list[tuple[str, str, int]] = field(default_factory=list)
    """(image, image of another split, bits of the perceptual hash that differ)."""
    odd: list[Odd] = field(default_factory=list)
    """In the order of their kinds."""
    warnings: list[str] = field(default_factory=list)
    """What a usable set is not good for."""

    @property
    def line(self) -> str:
        """`DATASET: usable`, or the verdict with its reason."""
        return f"{self.dataset}: {self.verdict}" + (f", {self.reason}" if self.reason else "")

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        return asdict(self)


def check(
    name: str,
    root: str,
    progress: OnProgress,
    *,
    assignments: dict[str, Any] | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Report:
    """Check the data set `name` in `root`.

    It is unusable if it cannot be read or split, if an image of validation or test classes is broken (an evaluation would
    stop), or more training images than `data.max_broken_share`; partial if its counts are not the owner's or broken training
    images would be replaced by others. Duplicates and odd files are listed and change no verdict.
    """
    configs = [
        resolve(name, recipe="demo", overrides={"data.root": root, "data.verify_counts": verify, **(assignments or {})})
        for verify in (True, False)
    ]
    announce("reading the listings")
    try:
        dataset, reason = _load(*configs, name)
    except ValueError as error:
        return Report(name, UNUSABLE, _short(error, name))
    announce("decoding every image")
    report = Report(name, USABLE, fingerprint=dataset.fingerprint)
    report.counts = {split: (len(dataset.split(split).class_names), len(dataset.split(split))) for split in SPLITS}
    try:
        images = list(scan(dataset, progress))
    except ValueError as error:
        report.verdict, report.reason = UNUSABLE, _short(error, name)
        return report
    announce("looking for duplicates")
    report.broken = [(split, dataset.split(split).source.name(row), seen.broken) for split, row, seen in images if seen.broken]  # fmt: skip
    _find_duplicates(dataset, images, report)
    odd = [*_odd_images(dataset, images), *_unlisted_files(dataset)]
    report.odd = sorted(odd, key=lambda one: ODD_KINDS.index(one.kind))
    if not report.counts["validation"][0]:
        report.warnings.append(
            "no class is left for validation, so sweeps and studies have nothing to choose on; add classes that train, three are the least"
        )
    _judge(report, reason, configs[0].data.max_broken_share)
    return report


def _load(strict: RunConfig, lenient: RunConfig, name: str) -> tuple[Dataset, str]:
    """The data set, and why it is partial if it is."""
    from saga_ray.data import load_dataset

    try:
        dataset = load_dataset(strict)
    except ValueError as error:
        return load_dataset(lenient), _short(error, name)
    if not dataset.partial:
        return dataset, ""
    return (
        dataset,
        "its counts are not those that its owner published; complete the copy, or see its rows marked partial",
    )


def _short(error: ValueError, name: str) -> str:
    """A refusal's sentence, with the ways out, without the key in front of it."""
    return str(error).splitlines()[0].removeprefix("data.root: ").removeprefix(f"{name}: ")


def _judge(report: Report, partial: str, max_broken_share: float) -> None:
    num_train = sum(split == "train" for split, _, _ in report.broken)
    num_others = len(report.broken) - num_train
    if num_others:
        report.verdict = UNUSABLE
        report.reason = f"{_count(num_others, 'image')} of validation and test classes cannot be decoded; replace or remove the files"
    elif num_train > max_broken_share * report.counts["train"][1]:
        report.verdict = UNUSABLE
        report.reason = (
            f"{_count(num_train, 'training image')} cannot be decoded, more than data.max_broken_share={max_broken_share}; replace or "
            f"remove the files, or raise data.max_broken_share"
        )
    elif partial:
        report.verdict, report.reason = PARTIAL, partial
    elif num_train:
        report.verdict = PARTIAL
        report.reason = f"{_count(num_train, 'training image')} cannot be decoded and others take their place; replace the files to train on all"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _find_duplicates(dataset: Dataset, images: list[tuple[str, int, Seen]], report: Report) -> None:
    def told(position: int) -> str:
        split, row, _ = images[position]
        table = dataset.split(split)
        return f"{split}: {table.image_ids[row]} ({table.class_names[table.labels_N[row]]})"

    def home(position: int) -> tuple[str, int]:
        split, row, _ = images[position]
        return split, int(dataset.split(split).labels_N[row])

    groups = equal_files([seen.sha256 for _, _, seen in images])
    report.equal = [[told(position) for position in group] for group in groups]
    report.num_equal_across = sum(len({home(position) for position in group}) > 1 for group in groups)
    splits_N = np.array([SPLITS.index(split) for split, _, _ in images])
    near = near_duplicates([seen.phash for _, _, seen in images], splits_N)
    report.near = [
        (told(a), told(b), distance) for a, b, distance in near if images[a][2].sha256 != images[b][2].sha256
    ]


def _odd_images(dataset: Dataset, images: list[tuple[str, int, Seen]]) -> Iterator[Odd]:
    for split, row, seen in images:
        source = dataset.split(split).source
        for kind, what in _odd_things(seen, source.file_name(row)):
            yield Odd(kind, source.name(row), what)


def _odd_things(seen: Seen, name: str) -> Iterator[tuple[str, str]]:
    """(kind, what) of an image."""
    if not seen.format:
        return
    ending = Path(name).suffix.lower()
    if ending in EXTENSIONS and ending not in _ENDINGS.get(seen.format, ()):
        yield "named after another format", f"is {seen.format} under the name of {ending}"
    if min(seen.width, seen.height) < MIN_SIDE:
        yield "small", f"is {seen.width} x {seen.height} pixels"
    elif max(seen.width, seen.height) > MAX_ASPECT * min(seen.width, seen.height):
        yield "long", f"is {seen.width} x {seen.height} pixels, and will be squeezed to a square"
    if seen.mode not in ("RGB", "L"):
        yield "unusual pixels", f"has the mode {seen.mode}"
    if seen.num_frames > 1:
        yield "several frames", f"has {seen.num_frames} frames, of which the first is used"
    if seen.is_turned:
        yield "turned by EXIF", "is turned as its EXIF orientation says"


def _unlisted_files(dataset: Dataset) -> Iterator[Odd]:
    """Files beside images of the data set that are none of them."""
    listed: dict[Path, set[str]] = {}
    for split in SPLITS:
        source = dataset.split(split).source
        if isinstance(source, FolderSource):
            for row in range(len(dataset.split(split))):
                path = source.path(row)
                listed.setdefault(path.parent, set()).add(path.name)
    for folder in sorted(listed):
        for path in sorted(folder.iterdir()):
            if path.name not in listed[folder] and path.is_file():
                yield Odd(NOT_LISTED, str(path), "lies among the images and is not listed")
