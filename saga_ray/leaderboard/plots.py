"""Training curves, bars of recall, where the MLLM looked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.leaderboard.figures import COLORS, DASHES, INK, MUTED, new_figure, shortened, styled
from saga_ray.leaderboard.html import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from saga_ray.leaderboard.board import BoardRow


@dataclass(frozen=True)
class CurveRun:
    """A run's label and the lines of its metrics.jsonl."""

    label: str
    lines: Sequence[Mapping[str, Any]]


def read_metrics(content: bytes) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a last line that is still being written is left out.

    Raises:
        ValueError: naming the line, if another one is damaged.
    """
    lines = content.decode("utf-8", errors="replace").split("\n")
    out = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            out.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise ValueError(f"metrics.jsonl line {number}: is not JSON; remove the line") from None
    return out


@dataclass(frozen=True)
class _Panel:
    title: str
    keys: tuple[str, ...]
    names: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    is_log: bool = False


PANELS = (
    _Panel("Metric loss", ("loss/metric",)),
    _Panel("GRPO loss", ("loss/grpo",)),
    _Panel("Alignment loss", ("loss/alignment",)),
    _Panel("Mean reward", ("reward/mean",), limits=(0, 1)),
    _Panel("Share of pairs whose answers agree", ("grpo/zero_advantage_share",), limits=(0, 1)),
    _Panel("Share of malformed answers", ("grpo/malformed_share",), limits=(0, 1)),
    _Panel("Gradient norm at the tokens", ("gradient/metric", "gradient/grpo"), ("metric", "GRPO"), is_log=True),
    _Panel("Cosine, GRPO and metric gradient", ("gradient/cosine",), limits=(-1, 1)),
)
"""What the curves show; a panel without data in any run is left out."""


def training_curves(runs: Sequence[CurveRun]) -> Figure:
    """Panels over steps, one colour per run: every step's value faintly, its running mean over it."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    with styled():
        panels = [
            panel for panel in PANELS if any(curve_points(run, key)[0].size for run in runs for key in panel.keys)
        ]
        num_columns = max(1, min(4, len(panels)))
        num_rows = max(1, -(-len(panels) // num_columns))
        figure = new_figure(3.3 * num_columns, 2.45 * num_rows + 0.45)
        if not panels:
            figure.text(0.5, 0.5, "No steps were trained.", ha="center", color=MUTED)
            return figure
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(num_rows, num_columns, place + 1)
            axes.set_title(panel.title)
            for number, run in enumerate(runs):
                for part, key in enumerate(panel.keys):
                    draw_curve(axes, *curve_points(run, key), COLORS[number % len(COLORS)], DASHES[part])
            if panel.limits:
                margin = 0.03 * (panel.limits[1] - panel.limits[0])
                axes.set_ylim(panel.limits[0] - margin, panel.limits[1] + margin)
            if panel.is_log:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")  # the default writes powers in mathematical markup
                axes.yaxis.set_minor_formatter(NullFormatter())
            if panel.names:
                for name, dash in zip(panel.names, DASHES, strict=False):
                    axes.plot([], [], dash, color=MUTED, label=name)
                axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="best")
            if place >= len(panels) - num_columns:
                axes.set_xlabel("step")
        handles = [Line2D([], [], color=COLORS[number % len(COLORS)], lw=2) for number in range(len(runs))]
        labels = [shortened(run.label, 48) for run in runs]
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(runs)), frameon=False)
        return figure


def curve_points(run: CurveRun, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a metric."""
    found = [
        (line["step"], line[key]) for line in run.lines if isinstance(line.get(key), (int, float)) and "step" in line
    ]
    points = np.array(found, dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return points[:, 0], points[:, 1]


def draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, dash: str) -> None:
    """A line, its running mean where there are many points."""
    if not steps.size:
        return
    window = max(1, len(values) // 25)
    if window == 1:
        axes.plot(steps, values, dash, color=color, lw=1.6, marker="o" if len(values) == 1 else None, ms=4)
        return
    axes.plot(steps, values, "-", color=color, lw=0.7, alpha=0.25)
    axes.plot(steps, running_mean(values, window), dash, color=color, lw=1.8)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the up to `window` values before and including each."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - window, 0)
    return (sums[stop] - sums[start]) / (stop - start)


def recall_bars(rows: Sequence[BoardRow], score: str = "recall@1") -> Figure:
    """One bar per row with its 95 % interval, best on top; baselines in grey."""
    from saga_ray.leaderboard.board import BASELINES

    with styled():
        figure = new_figure(7.5, 0.9 + 0.42 * max(len(rows), 1))
        axes = figure.add_subplot()
        places = np.arange(len(rows))[::-1]
        means = np.array([100 * row.scores[score] for row in rows])
        colors = ["#b9bec2" if row.method in BASELINES else COLORS[0] for row in rows]
        axes.barh(places, means, height=0.62, color=colors)
        ends = []
        for place, mean, row in zip(places, means, rows, strict=True):
            low, high = (100 * end for end in row.intervals.get(score, (mean / 100, mean / 100)))
            axes.plot([low, high], [place, place], color=INK, lw=1.4, solid_capstyle="butt")
            ends.append(max(high, mean))
            axes.annotate(
                f"{mean:.1f}", (ends[-1], place), (6, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks(places, [shortened(row.label, 44) for row in rows], color=INK)
        axes.set_xlim(0, min(112.0, 1.14 * max(ends, default=100.0)))
        axes.set_xlabel(f"{score.replace('recall@', 'Recall@')} in percent, 95 % interval over classes and seeds")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        return figure


def attention_overlay(
    image_HWC: np.ndarray, map_T: np.ndarray, grid_hw: tuple[int, int], size: int = 256
) -> np.ndarray:
    """A picture as if lit by the attention that it got: dim and grey where little, warm and clear where much.

    Args:
        image_HWC: uint8.
        map_T: Attention of each visual token, raster order, any scale.
        grid_hw: Rows and columns of tokens.

    Returns:
        uint8 (size, size, 3).
    """
    from matplotlib import colormaps
    from PIL import Image

    assert map_T.shape == (grid_hw[0] * grid_hw[1],), f"{map_T.shape} attention values for a grid of {grid_hw}"
    share = np.asarray(map_T, np.float64).reshape(grid_hw)
    share = share - share.min()
    share = share / share.max() if share.max() > 0 else share
    heat = Image.fromarray(share.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    heat_HW1 = np.clip(np.asarray(heat), 0, 1)[:, :, None]
    picture = np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BICUBIC), np.float64)
    dim = 0.30 * picture.mean(axis=2, keepdims=True) + np.array([14.0, 16.0, 34.0])
    warm = 255 * colormaps["inferno"](0.25 + 0.6 * heat_HW1[:, :, 0])[:, :, :3]
    lit = 0.72 * picture + 0.38 * warm
    blended = dim + heat_HW1 * (lit - dim)
    return np.rint(np.clip(blended, 0, 255)).astype(np.uint8)


def attention_figure(
    images: tuple[np.ndarray, np.ndarray],
    maps: tuple[np.ndarray, np.ndarray],
    grid_hw: tuple[int, int],
    answer: str,
    titles: tuple[str, str] = ("image 1", "image 2"),
) -> Figure:
    """A pair, where the MLLM looked in each picture, and what it said."""
    import textwrap

    with styled():
        text = "\n".join(textwrap.wrap(visible(answer).replace(",", ", "), 125)[:8])
        figure = new_figure(10.4, 2.85 + 0.16 * (text.count("\n") + 1))
        for place, (image_HWC, map_T, title) in enumerate(zip(images, maps, titles, strict=True)):
            overlay = attention_overlay(image_HWC, np.asarray(map_T), grid_hw)
            for column, (pixels, heading) in enumerate(((image_HWC, title), (overlay, "where it looked"))):
                axes = figure.add_subplot(1, 4, 2 * place + column + 1)
                axes.imshow(pixels)
                axes.set_title(shortened(heading, 30))
                axes.set_axis_off()
        figure.supxlabel(text, fontsize=8, x=0.01, ha="left", color=INK)
        return figure
