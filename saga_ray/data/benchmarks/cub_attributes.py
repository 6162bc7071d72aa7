"""The attributes of CUB-200-2011: 312 binary labels of every image become one value for each of 28 groups.

The owner asked workers on Mechanical Turk about every image. `attributes.txt` names the attributes, `number has_group::value`;
`attributes/image_attribute_labels.txt` says `image attribute is_present certainty seconds`, with certainties 1 "not visible",
2 "guessing", 3 "probably", 4 "definitely". A few lines have columns too many; their first four are right.

**One value per group.** An attribute counts for an image if it is marked present and the worker was at least "probably" sure.
Of a group's attributes the one with the highest certainty is the image's value. If none counts, or several are equally
certain, the value is unknown, -1: a wing that is black and white has no single colour, and to pick either would call a right
answer wrong. Nor does the majority of the class fill a gap: it may describe what this picture does not show. So the truth is
sparse, and a share of values named rightly is over known ones alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from saga_ray.data.files.tree import Truth, numbered_lines

logger = logging.getLogger(__name__)

PROBABLY = 3
_LABELS = Path("attributes", "image_attribute_labels.txt")
_COLUMNS = ("image", "attribute", "is_present", "certainty", "seconds")


def read_truth(root: Path, paths: Mapping[int, str]) -> Truth | None:
    """Attribute values of the images of a CUB tree, or None where it has no attribute files.

    Args:
        root: `CUB_200_2011`. `attributes.txt` lies there, in `attributes/`, or beside the folder, as in the archive.
        paths: image number to image id.

    Returns:
        Groups in the order of their first attribute, named as "bill shape"; values in the file's order, as "hooked seabird",
        without remarks in brackets and without the part that the group names already.

    Raises:
        ValueError: naming the file, for one that is not the owner's.
    """
    places = (root / "attributes.txt", root / "attributes" / "attributes.txt", root.parent / "attributes.txt")
    listed = next((place for place in places if place.is_file()), None)
    if listed is None or not (root / _LABELS).is_file():
        return None
    groups, place_of = _groups(listed)
    labels_M4 = read_labels(root / _LABELS)
    known_M = np.isin(labels_M4[:, 0], list(paths)) & np.isin(labels_M4[:, 1], list(place_of))
    if not known_M.all():
        logger.warning("%s: %d lines are about unknown images or attributes", root / _LABELS, (~known_M).sum())
    numbers = sorted(paths)
    values_NA = one_value_each(labels_M4[known_M], numbers, place_of, len(groups))
    of_image = {paths[number]: values_A for number, values_A in zip(numbers, values_NA, strict=True)}
    return Truth(tuple(groups), tuple(map(tuple, groups.values())), of_image)


def _groups(path: Path) -> tuple[dict[str, list[str]], dict[int, tuple[int, int]]]:
    """Group to its values' words, and attribute number to (group, value)."""
    groups: dict[str, list[str]] = {}
    place_of = {}
    for number, name in numbered_lines(path).items():
        group, mark, value = name.partition("::")
        if not mark or not group or not value:
            raise ValueError(
                f"data.root: {path}: attribute {number}, '{name}', is not 'group::value'; the file is damaged"
            )
        group = group.removeprefix("has_").replace("_", " ")
        words = groups.setdefault(group, [])
        place_of[number] = (list(groups).index(group), len(words))
        words.append(_words(value, part=group.split()[0]))
    return groups, place_of


def _words(value: str, part: str) -> str:
    """`curved_(up_or_down)` to "curved", `forked_tail` to "forked": as the bundled vocabulary of birds writes them."""
    text = re.sub(r"\(.*?\)", "", value.replace("_", " ")).strip()
    return re.sub(rf"[ -]{re.escape(part)}s?$", "", text)


def read_labels(path: Path) -> np.ndarray:
    """(lines, 4) int64: image, attribute, is_present, certainty; the owner's file has 3.7 million lines.

    Lines with columns too many are read by their first four; lines that are no labels at all are left out with a warning.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv

    odd: list[str] = []

    def keep_aside(row: csv.InvalidRow) -> str:
        odd.append(row.text)
        return "skip"

    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=_COLUMNS, use_threads=False),
            csv.ParseOptions(delimiter=" ", quote_char=False, invalid_row_handler=keep_aside),
            csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS[:4], pa.int64()), include_columns=_COLUMNS[:4]),
        )
        regular_M4 = np.stack([table.column(name).to_numpy() for name in _COLUMNS[:4]], axis=1)
    except pa.ArrowInvalid:  # some line has other things than numbers
        regular_M4, odd = np.zeros((0, 4), np.int64), path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"data.root: {path} cannot be read ({error}); unpack the archive again") from None
    odd = [line for line in odd if line.strip()]
    read = list(_first_four(odd))
    if len(read) < len(odd):
        logger.warning("%s: %d lines are no labels and are left out", path, len(odd) - len(read))
    return np.concatenate([regular_M4, np.array(read, np.int64).reshape(-1, 4)])


def _first_four(lines: list[str]) -> Iterator[list[int]]:
    for line in lines:
        columns = line.split()[:4]
        if len(columns) == 4 and all(column.isdecimal() for column in columns):
            yield [int(column) for column in columns]


def one_value_each(
    labels_M4: np.ndarray, numbers: list[int], place_of: Mapping[int, tuple[int, int]], num_groups: int
) -> np.ndarray:
    """The most certain present attribute of every image and group, as the head of this module says.

    Args:
        labels_M4: lines about `numbers` and the attributes of `place_of` alone, in any order.
        numbers: image numbers, rising.
        place_of: attribute number to (group, value).

    Returns:
        int64 (images, groups), -1 where it is not known.
    """
    out_NA = np.full((len(numbers), num_groups), -1, dtype=np.int64)
    labels_M4 = labels_M4[(labels_M4[:, 2] == 1) & (labels_M4[:, 3] >= PROBABLY)]
    if len(labels_M4) == 0:
        return out_NA
    attributes = sorted(place_of)
    group_of, value_of = np.array([place_of[attribute] for attribute in attributes]).T
    column_M = np.searchsorted(attributes, labels_M4[:, 1])
    # Several workers may have said the same of an image: the surest of them counts once.
    surest = np.zeros((len(numbers), len(attributes)), dtype=np.int64)
    np.maximum.at(surest, (np.searchsorted(numbers, labels_M4[:, 0]), column_M), labels_M4[:, 3])
    for group in range(num_groups):
        columns = np.flatnonzero(group_of == group)
        certainty_NV = surest[:, columns]
        best_N = certainty_NV.max(axis=1)
        alone_N = (best_N > 0) & ((certainty_NV == best_N[:, None]).sum(axis=1) == 1)
        out_NA[alone_N, group] = value_of[columns][certainty_NV.argmax(axis=1)][alone_N]
    return out_NA
