"""Plots about vocabularies: what attributes tell and cost, and how many are named rightly before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.leaderboard.figures import COLORS, INK, MUTED, new_figure, shortened, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINDING_COLORS = {
    "decides": COLORS[0],
    "open": COLORS[5],
    "for nothing": COLORS[1],
    "seldom answered": "#b9bec2",
    "never answered": "#b9bec2",
}


def information_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits of every attribute with its interval, most on top, coloured by what was found; the tokens stand beside it.

    Args:
        rows: with `name`, `finding`, `bits`, `low`, `high` and `tokens`.
    """
    with styled():
        ordered = sorted(rows, key=lambda row: -row["bits"])
        figure = new_figure(8.0, 1.2 + 0.27 * len(ordered))
        axes = figure.add_subplot()
        places = np.arange(len(ordered))[::-1]
        for place, row in zip(places, ordered, strict=True):
            axes.barh(place, max(0.0, row["bits"]), 0.62, color=FINDING_COLORS[row["finding"]])
            axes.plot([row["low"], row["high"]], [place, place], color=INK, lw=1.2, solid_capstyle="butt")
            end = max(row["high"], row["bits"], 0.0)
            words = f"{row['tokens']:.1f} tokens"
            axes.annotate(words, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=8, color=MUTED)
        axes.set_yticks(places, [shortened(row["name"], 34) for row in ordered], color=INK)
        axes.set_xlim(0, 1.18 * max([0.01, *(max(row["high"], row["bits"]) for row in ordered)]))
        axes.set_xlabel("bits that a written difference tells about the truth, 95 % interval over pairs")
        axes.grid(visible=False, axis="y")
        for finding in dict.fromkeys(row["finding"] for row in ordered):
            axes.barh(0, 0, color=FINDING_COLORS[finding], label=finding)
        figure.legend(loc="outside upper left", ncols=5, frameon=False, fontsize=9)
        return figure


def truth_lines(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of rightly named values of every attribute, from before training to after, with the difference's interval.

    Args:
        rows: with `name`, `before`, `after`, `low` and `high`, the latter two of the difference; in this order from the top.
    """
    with styled():
        figure = new_figure(8.0, 1.2 + 0.3 * len(rows))
        axes = figure.add_subplot()
        places = np.arange(len(rows))[::-1]
        before, after = (100 * np.array([row[key] for row in rows]) for key in ("before", "after"))
        for place, start, end, row in zip(places, before, after, rows, strict=True):
            ends = np.clip(start + 100 * np.array([row["low"], row["high"]]), 0, 100)
            axes.plot(ends, [place, place], color=COLORS[0], lw=6, alpha=0.22, solid_capstyle="butt")
            axes.plot([start, end], [place, place], color=INK, lw=1.2)
        axes.plot(before, places, "o", ms=6, color="#b9bec2", label="before training", zorder=3)
        axes.plot(after, places, "o", ms=6, color=COLORS[0], label="after training", zorder=3)
        axes.plot([], [], color=COLORS[0], lw=6, alpha=0.22, label="95 % interval of the difference, over classes")
        axes.set_yticks(places, [shortened(row["name"], 34) for row in rows], color=INK)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("descriptions with the true value, in percent")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return figure
