"""A page of queries and what was found for them, hardest first: one folder, works offline, no script."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.leaderboard.html import as_storage, render_template, visible

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from saga_ray.storage import Storage
    from saga_ray.types import ImageTable

THUMBNAILS = "thumbnails"
_DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class GalleryRun:
    """A run's queries, as `ResultStore.per_query` returns them."""

    label: str
    per_query: pa.Table


def write_gallery(
    folder: Storage | Path | str,
    title: str,
    images: ImageTable,
    runs: Sequence[GalleryRun],
    *,
    details: str = "",
    max_queries: int = 120,
    num_neighbours: int = 8,
    tile_px: int = 104,
    thumbnail_px: int = 128,
) -> str:
    """Write `index.html` and its thumbnails.

    Queries are ordered by average precision at R, worst first. With two runs each card shows both and can be filtered by
    won (only the second is right at 1) and lost (only the first is); the order is that of the second.
    Of more than `max_queries`, equally many of each outcome are kept as far as there are, the hardest of each.

    Args:
        images: The split that was queried; gives pictures and class names.
        runs: One run, or two to compare (for instance the best baseline, then SAGA).
        tile_px: Side of a picture on the page.
        thumbnail_px: Side of the picture's file.

    Returns:
        Where the page lies.

    Raises:
        ValueError: if the runs did not query the same images, or the split does not hold them.
    """
    assert 1 <= len(runs) <= 2, "a gallery shows one run or compares two"
    storage = as_storage(folder)
    row_of = {image_id: row for row, image_id in enumerate(images.image_ids)}
    tables = [_by_image(run, row_of) for run in runs]
    if any(table.keys() != tables[0].keys() for table in tables):
        raise ValueError(
            f"'{runs[0].label}' and '{runs[1].label}' were not queried with the same images; compare two of one split"
        )
    ordered = sorted(tables[-1], key=lambda image_id: (tables[-1][image_id]["ap@r"], image_id))
    outcome_of = {image_id: _outcome([table[image_id]["hit@1"] for table in tables]) for image_id in ordered}
    kept = _balanced(ordered, outcome_of, max_queries)

    queries, pictured = [], set()
    for image_id in kept:
        answers = [
            _answer(run.label if len(runs) > 1 else "", table[image_id], num_neighbours, images, row_of)
            for run, table in zip(runs, tables, strict=True)
        ]
        pictured |= {image_id, *(near["image_id"] for answer in answers for near in answer["neighbours"])}
        queries.append(_picture(image_id, images, row_of) | {"outcome": outcome_of[image_id], "answers": answers})
    for image_ids in _batches(sorted(pictured)):
        pixels_NHWC = images.source.load([row_of[image_id] for image_id in image_ids], thumbnail_px)
        for image_id, pixels_HWC in zip(image_ids, pixels_NHWC, strict=True):
            storage.write(thumbnail_path(image_id), to_jpeg(pixels_HWC))

    words = _OUTCOMES[len(runs)]
    totals = {name: sum(outcome == name for outcome in outcome_of.values()) for name in words}
    shown = {name: sum(outcome_of[image_id] == name for image_id in kept) for name in words}
    page = render_template(
        "gallery.html",
        title=visible(title),
        details=visible(details),
        tile_px=tile_px,
        queries=queries,
        outcomes=[(name, words[name], shown[name], totals[name]) for name in words],
        hidden=_what_is_hidden(words, shown, totals),
    )
    storage.write("index.html", page.encode())
    return storage.child("index.html").uri


_OUTCOMES = {
    1: {"wrong": "wrong at 1", "right": "right at 1"},
    2: {"lost": "lost", "won": "won", "wrong": "both wrong", "right": "both right"},
}


def _outcome(hits: list[bool]) -> str:
    if len(set(hits)) == 1:
        return "right" if hits[0] else "wrong"
    return "won" if hits[1] else "lost"


def _balanced(ordered: list[str], outcome_of: dict[str, str], max_queries: int) -> list[str]:
    """The hardest of each outcome, as evenly as there are enough of them, in the given order."""
    groups: dict[str, list[str]] = {}
    for image_id in ordered:
        groups.setdefault(outcome_of[image_id], []).append(image_id)
    kept: set[str] = set()
    left = max_queries
    for place, group in enumerate(sorted(groups.values(), key=len)):
        share = left // (len(groups) - place)
        kept |= set(group[:share])
        left -= min(share, len(group))
    return [image_id for image_id in ordered if image_id in kept]


def _what_is_hidden(words: dict[str, str], shown: dict[str, int], totals: dict[str, int]) -> str:
    if shown == totals:
        return ""
    parts = [f"{shown[name]} of {totals[name]} {words[name]}" for name in words if totals[name]]
    return f"Shown are the hardest of each kind: {', '.join(parts)}."


def _by_image(run: GalleryRun, row_of: dict[str, int]) -> dict[str, dict[str, Any]]:
    rows = {row["image_id"]: row for row in run.per_query.to_pylist()}
    named = {*rows, *(near for row in rows.values() for near in row["neighbours"])}
    if missing := sorted(named - row_of.keys()):
        raise ValueError(
            f"'{run.label}' was evaluated on {len(missing)} images that this split does not hold ({missing[0]}, ...); "
            f"give the data set that it was evaluated on"
        )
    return rows


def _answer(
    label: str, row: dict[str, Any], num_neighbours: int, images: ImageTable, row_of: dict[str, int]
) -> dict[str, Any]:
    own = images.labels_N[row_of[row["image_id"]]]
    near = list(zip(row["neighbours"], row["cosines"], strict=True))[:num_neighbours]
    return {
        "label": visible(label),
        "is_hit": row["hit@1"],
        "precision": f"{row['ap@r']:.2f}",
        "neighbours": [
            _picture(image_id, images, row_of)
            | {"is_same": bool(images.labels_N[row_of[image_id]] == own), "cosine": f"{cosine:.2f}"}
            for image_id, cosine in near
        ],
    }


def _picture(image_id: str, images: ImageTable, row_of: dict[str, int]) -> dict[str, Any]:
    class_name = images.class_names[images.labels_N[row_of[image_id]]]
    return {
        "image_id": visible(image_id),
        "class_name": visible(class_name.replace("_", " ")),
        "picture": thumbnail_path(image_id),
    }


def thumbnail_path(image_id: str) -> str:
    """A file name that no image id can break out of."""
    return f"{THUMBNAILS}/{hashlib.sha256(image_id.encode()).hexdigest()[:20]}.jpg"


def to_jpeg(pixels_HWC: np.ndarray) -> bytes:
    """A picture file; equal pixels give equal bytes."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels_HWC).save(sink, "JPEG", quality=88)
    return sink.getvalue()


def _batches(items: list[str]) -> list[list[str]]:
    return [items[start : start + _DECODED_AT_ONCE] for start in range(0, len(items), _DECODED_AT_ONCE)]
