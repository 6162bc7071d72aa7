"""Splits that are fixed: which classes of a benchmark train and which are queried, as JSON files in the package.

`manifests/NAME.json` lists the owner's classes in order, each with its number of images, says how many of them train, which of
those are held back as validation classes, where the list is from, and a SHA-256 over all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True)
class Manifest:
    """The split of one benchmark.

    Example: `manifest("cub").split_of("101.White_Pelican")` is `"test"`.
    """

    name: str
    title: str
    known_by: str
    """`names`: class ids are the owner's names. `rule`: ids follow from a rule, since no list of names was at hand."""
    source: str
    images_of_class: Mapping[str, int | None]
    """Class id to number of images (None where the owner gives sums alone), in the order that decides the halves."""
    num_train_classes: int
    num_images: int
    validation_share: float
    validation: tuple[str, ...]
    """Classes of the training half that are held back at `validation_share`."""
    sha256: str

    @property
    def train(self) -> tuple[str, ...]:
        """Ids of the training half, validation classes included."""
        return tuple(self.images_of_class)[: self.num_train_classes]

    @property
    def test(self) -> tuple[str, ...]:
        """Ids of the half that is queried."""
        return tuple(self.images_of_class)[self.num_train_classes :]

    def split_of(self, class_id: str) -> str | None:
        """`train` (also for validation classes), `test`, or None for a class that the owner does not have."""
        return self._halves.get(class_id)

    @property
    def _halves(self) -> Mapping[str, str]:
        return _halves(tuple(self.images_of_class), self.num_train_classes)

    def with_total(self, num_images: int) -> Manifest:
        """The same classes with other numbers of images, of which only the sum is known."""
        return replace(self, images_of_class=dict.fromkeys(self.images_of_class), num_images=num_images)

    def __str__(self) -> str:
        train, test = ([self.images_of_class[class_id] for class_id in half] for half in (self.train, self.test))
        if None in train + test:
            return f"{len(train) + len(test):,} classes with {self.num_images:,} images"
        return described(len(train), sum(train), len(test), sum(test))


def described(num_train_classes: int, num_train_images: int, num_test_classes: int, num_test_images: int) -> str:
    """The four numbers of a split in words."""
    return (
        f"{num_train_classes:,} training classes with {num_train_images:,} images "
        f"and {num_test_classes:,} test classes with {num_test_images:,}"
    )


@lru_cache(maxsize=4)
def _halves(class_ids: tuple[str, ...], num_train_classes: int) -> Mapping[str, str]:
    return {class_id: "train" if place < num_train_classes else "test" for place, class_id in enumerate(class_ids)}


@lru_cache
def manifest(name: str) -> Manifest:
    """The split of `cub`, `cars`, `aircraft` or `inat-aves`.

    Raises:
        ValueError: if the package's file is not as it was written.
    """
    content = json.loads((files("saga_ray.data") / "manifests" / f"{name}.json").read_text(encoding="utf-8"))
    images_of_class = {class_id: num_images for class_id, num_images in content["classes"]}
    found = Manifest(
        name=name,
        title=content["title"],
        known_by=content["known_by"],
        source=content["source"],
        images_of_class=images_of_class,
        num_train_classes=content["num_train_classes"],
        num_images=content["num_train_images"] + content["num_test_images"],
        validation_share=content["validation_share"],
        validation=tuple(content["validation"]),
        sha256=content["sha256"],
    )
    if split_digest(found) != found.sha256:
        raise ValueError(f"saga_ray/data/manifests/{name}.json: other content than its sha256; install saga-ray again")
    return found


def split_digest(split: Manifest) -> str:
    """SHA-256 over one line per class: split, id and number of images between tabs."""
    held = set(split.validation)
    lines = [
        f"{'validation' if class_id in held else split.split_of(class_id)}\t{class_id}\t{num_images}\n"
        for class_id, num_images in split.images_of_class.items()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def differences(split: Manifest, sizes: Mapping[str, int]) -> list[str]:
    """How the classes found, {class id: number of images}, differ from the owner's; empty where they do not."""
    missing = [class_id for class_id in split.images_of_class if class_id not in sizes]
    unknown = [class_id for class_id in sizes if split.split_of(class_id) is None]
    other = [
        f"{class_id} ({sizes[class_id]:,} of {wanted:,})"
        for class_id, wanted in split.images_of_class.items()
        if wanted is not None and sizes.get(class_id, wanted) != wanted
    ]
    out = []
    if missing:
        out.append(f"{_classes(missing)} missing: {_first(missing)}")
    if unknown:
        out.append(f"{_classes(unknown)} unknown: {_first(unknown)}")
    if other:
        out.append(f"{_classes(other)} of another size: {_first(other)}")
    if not out and sum(sizes.values()) != split.num_images:
        out.append(f"{sum(sizes.values()):,} images instead of {split.num_images:,}")
    return out


def _classes(names: Sequence[str]) -> str:
    return f"{len(names):,} class{'es' if len(names) > 1 else ''}"


def _first(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
