"""The page of a study: its board, its curves, its galleries, and for some pairs what the MLLM said and where it looked."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.leaderboard.board import BoardRow, tables
from saga_ray.leaderboard.figures import save_figure
from saga_ray.leaderboard.html import as_storage, render_template, visible
from saga_ray.leaderboard.plots import CurveRun, attention_overlay, recall_bars, training_curves
from saga_ray.leaderboard.render import EMPTY, html_boards

if TYPE_CHECKING:
    from pathlib import Path

    from saga_ray.storage import Storage


@dataclass(frozen=True)
class JudgedAnswer:
    """One completion of the MLLM for a pair."""

    text: str
    verdict: int
    """1 same, 0 different, -1 none."""
    reward: float


@dataclass(frozen=True)
class JudgedPair:
    """A pair of images, the truth, and the MLLM's answers; the page shows the first answer in full."""

    images: tuple[np.ndarray, np.ndarray]
    """uint8 HWC."""
    class_names: tuple[str, str]
    same_class: bool
    answers: tuple[JudgedAnswer, ...]
    attention: tuple[np.ndarray, np.ndarray] | None = None
    """Attention of the answers' attribute words over each image's tokens, (T,) each."""
    grid_hw: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Link:
    """Words and where they lead, relative to the page."""

    words: str
    href: str


def write_demo_page(
    folder: Storage | Path | str,
    title: str,
    rows: Sequence[BoardRow],
    *,
    summary: str = "",
    curves: Sequence[CurveRun] = (),
    links: Sequence[Link] = (),
    pairs: Sequence[JudgedPair] = (),
    commands: Sequence[tuple[str, str]] = (),
) -> str:
    """Write `index.html`, the plots (PNG and SVG) and the pairs' pictures into a folder.

    Args:
        links: For instance the galleries, as relative addresses below this folder.
        commands: (words, command) pairs of what to type next.

    Returns:
        Where the page lies.
    """
    storage = as_storage(folder)
    bars = []
    for number, members in enumerate(tables(rows), start=1):
        name = "recall" if number == 1 else f"recall-{number}"
        save_figure(recall_bars(members), storage, name)
        words = ", ".join(f"{visible(row.label)} {100 * row.scores['recall@1']:.1f}" for row in members)
        bars.append({"src": f"{name}.svg", "alt": f"Recall@1 in percent: {words}"})
    trained = [run for run in curves if run.lines]
    if trained:
        save_figure(training_curves(trained), storage, "curves")
    for link in links:
        assert ":" not in link.href and not link.href.startswith("/"), f"{link.href!r} leaves the page's folder"
    page = render_template(
        "demo.html",
        title=visible(title),
        summary=visible(summary),
        boards=html_boards(rows),
        empty=EMPTY,
        bars=bars,
        curves=[{"src": "curves.svg", "alt": "Losses, rewards and gradients over the training steps"}]
        if trained
        else [],
        links=[(link.words, link.href) for link in links],
        pairs=[_pair(pair, number, storage) for number, pair in enumerate(pairs, start=1)],
        commands=list(commands),
    )
    storage.write("index.html", page.encode())
    return storage.child("index.html").uri


_VERDICTS = {1: "same", 0: "different"}


def _pair(pair: JudgedPair, number: int, storage: Storage) -> dict[str, Any]:
    first = pair.answers[0]
    images = []
    for place, image_HWC in enumerate(pair.images):
        image = {"src": f"pairs/{number:02d}-{place + 1}.png", "overlay": None}
        storage.write(image["src"], _png(_enlarged(image_HWC)))
        if pair.attention is not None:
            image["overlay"] = f"pairs/{number:02d}-{place + 1}-attention.png"
            overlay_HWC = attention_overlay(image_HWC, np.asarray(pair.attention[place]), pair.grid_hw)
            storage.write(image["overlay"], _png(overlay_HWC))
        images.append(image | {"class_name": visible(pair.class_names[place].replace("_", " "))})
    num_right = sum(answer.verdict == pair.same_class for answer in pair.answers)
    return {
        "images": images,
        "same_class": pair.same_class,
        "verdict": _VERDICTS.get(first.verdict, "none"),
        "is_right": first.verdict == pair.same_class,
        "reward": f"{first.reward:g}",
        "tally": f"{num_right} of {len(pair.answers)} answers right" if len(pair.answers) > 1 else "",
        "described": described(first.text),
        "text": first.text,
    }


def described(text: str) -> list[tuple[str, str, str]]:
    """What a JSON answer says of each image: (attribute, image 1, image 2); empty if it does not have that form.

    The descriptions are the objects under keys that end in 1 and 2.
    """
    try:
        answer = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return []
    sides = [
        next((value for key, value in answer.items() if key.endswith(end) and isinstance(value, dict)), None)
        for end in ("1", "2")
    ]
    if not all(sides):
        return []
    names = [*sides[0], *(name for name in sides[1] if name not in sides[0])]
    return [(name.replace("_", " "), *(str(side.get(name, "-")) for side in sides)) for name in names]


def _enlarged(image_HWC: np.ndarray, size: int = 256) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BICUBIC))


def _png(image_HWC: np.ndarray) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image_HWC).save(sink, "PNG")
    return sink.getvalue()
