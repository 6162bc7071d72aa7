"""Pictures of a study: scores with intervals, and what the trials scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saga_ray.leaderboard.figures import COLORS, INK, new_figure, styled
from saga_ray.study.file import Block, Study
from saga_ray.study.plan import Planner
from saga_ray.study.record import Records
from saga_ray.study.table import SCORES, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_KIND = {
    "pretrained": "#d7dadc", "baseline": "#8d959b", "control": COLORS[5], "method": COLORS[0], "variant": COLORS[2],
    "ablation": COLORS[1], "ceiling": COLORS[4],
}  # fmt: skip
_MARKS = "osD^"
"""Of rows whose colour comes a second time."""


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its file, and what it shows."""

    name: str
    figure: Figure
    words: str


def block_picture(study: Study, table: Table) -> Picture:
    """The scores of a block: rows below each other, or worlds beside each other."""
    words = "R@1 and MAP@R of every row, with 95 % intervals over classes and seeds."
    draw = block_dots if table.block.table == "rows" else world_dots
    return Picture(f"scores-{table.block.name}", draw(study, table), words)


class Trial(NamedTuple):
    """A trial in a picture."""

    share: float
    """Of the budget."""
    score: float
    is_chosen: bool


def trial_pictures(study: Study, planner: Planner, records: Records) -> Iterator[Picture]:
    """One for each world and budget that rows are tuned on."""
    metric = study.tuning.metric
    for (world, budget), (block, names) in tuned_places(study).items():
        trials: dict[str, list[Trial]] = {}
        for row in names:
            choice = planner.choice(row, block, records.get)
            found = [(task, records.get(task.name)) for task in planner.trials(row, block)]
            told = [
                Trial(task.share, record.scores[metric], choice is not None and task.values == choice.values)
                for task, record in found
                if record and record.status == "finished"
            ]
            trials |= {row: told} if told else {}
        if trials:
            words = (
                f"Trials in world {world} at budget {budget}: a dot each, the smaller the shorter the trial. "
                f"Filled is what was chosen."
            )
            yield Picture(f"trials-{world}-{budget}", trial_dots(trials, metric), words)


def tuned_places(study: Study) -> dict[tuple[str, str], tuple[Block, list[str]]]:
    """(world, budget) of trials, to a block that rests on them, and all rows that do."""
    places: dict[tuple[str, str], tuple[Block, list[str]]] = {}
    for block in study.blocks:
        if (tuned := study.tuned_on(block)) is not None:
            names = places.setdefault(tuned, (block, []))[1]
            names += [row for row in block.rows if study.rows[row].trains and row not in names]
    return places


def block_dots(study: Study, table: Table) -> Figure:
    """One dot per row with its 95 % interval, R@1 left and MAP@R right, the best above; worlds below each other."""
    worlds = study.worlds_of(table.block)
    known = [line for line in table.lines if line.means]
    lines = sorted(known, key=lambda line: (worlds.index(line.world), -line.means[SCORES[0]]))
    several = len({line.world for line in table.lines}) > 1
    names = [f"{line.row}, {line.world}" if several else line.row for line in lines]
    colors = [_OF_KIND[study.rows[line.row].kind] for line in lines]
    with styled():
        figure = new_figure(10.5, 1.0 + 0.3 * max(1, len(lines)))
        places = np.arange(len(lines))[::-1]
        for column, score in enumerate(SCORES):
            axes = figure.add_subplot(1, 2, column + 1)
            means = np.array([100 * line.means[score] for line in lines])
            ends = [[100 * end for end in line.intervals[score]] for line in lines]
            for place, mean, (low, high), color in zip(places, means, ends, colors, strict=True):
                axes.plot([low, high], [place, place], color=color, lw=3, solid_capstyle="butt")
                axes.plot([mean], [place], "o", color=color, markeredgecolor=INK, ms=7)
                text_at = (max(high, mean), place)
                axes.annotate(f"{mean:.1f}", text_at, (5, 0), textcoords="offset points", va="center", fontsize=8.5)
            axes.set_ylim(-0.6, len(lines) - 0.4)
            axes.set_yticks(places, names if column == 0 else [""] * len(lines), color=INK)
            least = min((low for low, _ in ends), default=0.0)
            highest = max((high for _, high in ends), default=100.0)
            # Dots, and an axis from the worst upwards: differences of a few points are the subject.
            axes.set_xlim(max(0.0, least - 0.15 * (highest - least) - 2), highest + 0.18 * (highest - least) + 2)
            axes.set_xlabel(f"{score_title(score)} in percent, {table.block.split} classes")
            left, right = axes.get_xlim()
            axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= min(right, 100)])
            axes.grid(visible=False, axis="y")
        _kinds_legend(axes, {study.rows[line.row].kind for line in lines})
        return figure


def _kinds_legend(axes: Axes, kinds: Collection[str]) -> None:
    """What the colours say; rows lie from the best to the worst, so the lower right is empty."""
    from matplotlib.lines import Line2D

    shown = [(kind, color) for kind, color in _OF_KIND.items() if kind in kinds]
    handles = [Line2D([], [], color=color, lw=3, marker="o", markeredgecolor=INK) for _, color in shown]
    axes.legend(handles, [kind for kind, _ in shown], loc="lower right", fontsize=8.5)


def world_dots(study: Study, table: Table) -> Figure:
    """A dot per row and world of a block, with 95 % intervals, R@1 above and MAP@R below; worlds have no order to join by."""
    worlds = study.worlds_of(table.block)
    rows = [row for row in table.block.rows if any(table.line(row, world).means for world in worlds)]
    with styled():
        figure = new_figure(max(6.4, 1.6 + 1.05 * len(worlds)), 5.4)
        for below, score in enumerate(SCORES):
            axes = figure.add_subplot(2, 1, below + 1)
            for number, row in enumerate(rows):
                color, mark = COLORS[number % len(COLORS)], _MARKS[number // len(COLORS) % len(_MARKS)]
                lines = [table.line(row, world) for world in worlds]
                # Beside each other, where several rows have equal scores.
                places = np.arange(len(worlds)) + 0.08 * (number - (len(rows) - 1) / 2)
                means = [100 * line.means.get(score, np.nan) for line in lines]
                axes.plot(places, means, marker=mark, ms=5, color=color, ls="none", label=row)
                ends = np.array([line.intervals.get(score, (np.nan, np.nan)) for line in lines])
                axes.vlines(places, *(100 * ends.T), color=color, lw=2.5, alpha=0.55)
            axes.set_xlim(-0.5, len(worlds) - 0.5)
            axes.set_xticks(range(len(worlds)), worlds if below else [""] * len(worlds), rotation=20, ha="right")
            axes.set_ylabel(f"{score_title(score)}, {table.block.split} classes")
            axes.grid(visible=False, axis="x")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        return figure


def trial_dots(trials: Mapping[str, Sequence[Trial]], metric: str) -> Figure:
    """Validation scores of every row's trials on a line of its own, the best row above."""
    with styled():
        figure = new_figure(10.5, 1.0 + 0.3 * len(trials))
        axes = figure.add_subplot()
        rows = sorted(trials, key=lambda row: max(trial.score for trial in trials[row]))
        for place, row in enumerate(rows):
            for trial in trials[row]:
                fill = COLORS[0] if trial.is_chosen else "none"
                size = 4 + 6 * trial.share
                axes.plot([100 * trial.score], [place], "o", color=COLORS[0], markerfacecolor=fill, ms=size, alpha=0.8)
        axes.set_yticks(range(len(rows)), rows, color=INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"{score_title(metric)} on validation classes, percent")
        axes.grid(visible=False, axis="y")
        return figure


def score_title(score: str) -> str:
    """As it stands at the head of a column."""
    return score.replace("recall@", "R@").replace("map@r", "MAP@R").replace("nmi", "NMI")
