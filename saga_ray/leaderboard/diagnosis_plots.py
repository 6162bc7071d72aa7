"""Plots of why training worked, or not: words, probes, drift and looks before and after, rewards beside validation verdicts.

A record is what `saga_ray.train.diagnosis.diagnose` returns for one run; records of equal label (the seeds of a row) are
averaged. A run is a label with the lines of its metrics.jsonl. What is missing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.leaderboard.figures import COLORS, DASHES, INK, MUTED, new_figure, shortened, styled
from saga_ray.leaderboard.plots import CurveRun, curve_points, draw_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labelled = Sequence[tuple[str, Mapping[str, Any]]]
"""(label, record) of every run."""
ALL = "all"
BEFORE = "before training"
BEFORE_COLOR = "#b9bec2"
_NOT_AT_TOKENS = ("gradient/total",)


def naming_bars(records: Labelled) -> Figure:
    """Attributes that the MLLM names rightly through the encoder, in percent: before training (grey), then one bar per row.

    The first group is the mean over attributes.
    """
    return _grouped_bars(_naming(records), "named rightly, percent")


def naming_means(records: Labelled) -> dict[str, float]:
    """The means over attributes that `naming_bars` shows, as shares, by row."""
    return {label: means[ALL] for label, means in _naming(records).items() if means}


def _naming(records: Labelled) -> dict[str, dict[str, float]]:
    before = _mean_of([record["before"]["attributes"] for _, record in records])
    after = {
        label: _mean_of([each["after"]["attributes"] for each in members])
        for label, members in by_label(records).items()
    }
    return {BEFORE: before} | after


def probe_bars(records: Labelled) -> Figure:
    """Attributes that a linear probe reads from embeddings of classes that it never saw, in percent; lines mark chance."""
    chance = _mean_of([record["probes"]["chance"] for _, record in records if record["probes"]])
    return _grouped_bars(_probed(records), "read by a linear probe, percent", chance)


def probe_means(records: Labelled) -> dict[str, float]:
    """The means over attributes that `probe_bars` shows, as shares, by row."""
    return {label: means[ALL] for label, means in _probed(records).items() if means}


def _probed(records: Labelled) -> dict[str, dict[str, float]]:
    before = _mean_of([record["probes"]["before"] for _, record in records if record["probes"]])
    after = {
        label: _mean_of([each["probes"]["after"] for each in members if each["probes"]])
        for label, members in by_label(records).items()
    }
    return {BEFORE: before} | after


def by_label(records: Labelled) -> dict[str, list[Mapping[str, Any]]]:
    """The records of every row, in the order in which rows come."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for label, record in records:
        rows.setdefault(label, []).append(record)
    return rows


def _mean_of(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of equal keys, with the mean over all keys first."""
    names = list(dict.fromkeys(name for each in shares for name in each))
    means = {name: float(np.mean([each[name] for each in shares if name in each])) for name in names}
    return {ALL: float(np.mean(list(means.values())))} | means if means else {}


def _grouped_bars(
    series: Mapping[str, Mapping[str, float]], words: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """One group per attribute, one bar per series, the first in grey; `marks` are drawn across each group."""
    with styled():
        groups = list(dict.fromkeys(name for each in series.values() for name in each))
        if not groups:
            return _empty("No attributes with known truth.")
        figure = new_figure(1.6 + 0.35 * len(groups) * max(2, 0.45 * len(series)), 3.9)
        axes = figure.add_subplot()
        width = 0.82 / len(series)
        for number, (label, values) in enumerate(series.items()):
            shown = [(place, 100 * values[name]) for place, name in enumerate(groups) if name in values]
            places = np.array([place for place, _ in shown]) - 0.41 + (number + 0.5) * width
            color = BEFORE_COLOR if number == 0 else COLORS[(number - 1) % len(COLORS)]
            axes.bar(places, [height for _, height in shown], width, color=color, label=shortened(label, 40))
        for name, share in (marks or {}).items():
            place = groups.index(name)
            axes.plot([place - 0.43, place + 0.43], [100 * share] * 2, color=INK, lw=1.1, ls=":")
        axes.set_xticks(range(len(groups)), [shortened(name, 24) for name in groups], rotation=28, ha="right")
        axes.set_ylim(0, 103)
        axes.set_ylabel(words)
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return figure


def reward_and_verdicts(runs: Sequence[CurveRun]) -> Figure:
    """Per run: reward on training classes, and verdicts and names on validation classes, over steps.

    When the first rises and the others do not, the encoder satisfies the reader without showing the attributes.
    """
    lines = (
        ("reward/mean", "reward, training classes"),
        ("validation/verdict", "right verdicts, validation classes"),
        ("validation/naming", "attributes named rightly, validation classes"),
    )

    looks = {key: (words, color, dash) for (key, words), color, dash in zip(lines, COLORS, DASHES, strict=False)}

    def known(run: CurveRun) -> list[str]:
        return [key for key in looks if curve_points(run, key)[0].size]

    def draw(axes: Axes, run: CurveRun) -> None:
        for key, (_, *look) in looks.items():
            draw_curve(axes, *curve_points(run, key), *look)
        axes.set_ylim(-0.02, 1.02)

    shown = [run for run in runs if known(run)]
    return _panels(shown, draw, [looks[key] for key in looks if any(key in known(run) for run in shown)])


def gradient_curves(runs: Sequence[CurveRun]) -> Figure:
    """Per run, over steps: above, lengths of the losses' gradients at the tokens; below, their cosines to the metric loss's."""
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [run for run in runs if _gradient_keys(run)]
    keys = list(dict.fromkeys(key for run in shown for key in _gradient_keys(run)))
    norms, cosines = [key for key in keys if "cosine" not in key], [key for key in keys if "cosine" in key]
    looks = {key: (COLORS[n % len(COLORS)], DASHES[n % len(DASHES)]) for n, key in enumerate(keys)}
    names = [(_gradient_words(key), *looks[key]) for key in keys]
    # One scale for all panels, above and below. Nearly all cosines lie close to 0.
    largest = max((np.abs(curve_points(run, key)[1]).max(initial=0.0) for run in shown for key in cosines), default=0.0)
    reach = min(1.03, max(0.1, 1.2 * float(largest)))
    lengths = np.concatenate([curve_points(run, key)[1] for run in shown for key in norms] or [np.ones(0)])
    lengths = lengths[lengths > 0]

    def draw_norms(axes: Axes, run: CurveRun) -> None:
        for key in norms:
            steps, values = curve_points(run, key)
            draw_curve(axes, steps[values > 0], values[values > 0], *looks[key])
        axes.set_yscale("log")
        axes.set_ylabel("length at the tokens")
        if lengths.size:
            axes.set_ylim(lengths.min() / 1.2, lengths.max() * 1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())

    def draw_cosines(axes: Axes, run: CurveRun) -> None:
        for key in cosines:
            draw_curve(axes, *curve_points(run, key), *looks[key])
        axes.set_ylim(-reach, reach)
        axes.set_ylabel("cosine")
        axes.set_visible(not set(cosines).isdisjoint(_gradient_keys(run)))

    return _panels(shown, draw_norms, names, draw_cosines if cosines else None)


def _gradient_words(key: str) -> str:
    name = key.removeprefix("gradient/")
    if name == "cosine":
        return "cosine of grpo"
    return f"cosine of {name.removeprefix('cosine_')}" if name.startswith("cosine_") else name


def _gradient_keys(run: CurveRun) -> list[str]:
    found = dict.fromkeys(key for line in run.lines for key in line if key.startswith("gradient/"))
    return [key for key in found if key not in _NOT_AT_TOKENS and curve_points(run, key)[0].size]


def zero_advantage_curves(runs: Sequence[CurveRun]) -> Figure:
    """Share of pairs whose answers all agree, which teach nothing, over steps; one colour per run."""
    key = "grpo/zero_advantage_share"
    with styled():
        shown = [run for run in runs if curve_points(run, key)[0].size]
        if not shown:
            return _empty("No run asked for answers.")
        figure = new_figure(6.4, 3.2)
        axes = figure.add_subplot()
        for number, run in enumerate(shown):
            color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
            draw_curve(axes, *curve_points(run, key), color, dash)
            axes.plot([], [], dash, color=color, label=shortened(run.label, 40))
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("step")
        axes.set_ylabel("share of pairs whose answers agree")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return figure


def drift_bars(records: Labelled) -> Figure:
    """Per row, how far the tokens moved in training: left, relative to their length, one bar per level; right, the angle."""
    with styled():
        rows = by_label(records)
        if not rows:
            return _empty("No runs.")
        figure = new_figure(9.6, 1.1 + 0.5 * len(rows))
        panels = (("relative", "|after - before| / |before|", 1.0), ("degrees", "angle between before and after", 90.0))
        means = {label: _drift_means(members) for label, members in rows.items()}
        for column, (key, words, least) in enumerate(panels):
            axes = figure.add_subplot(1, 2, column + 1)
            num_levels = max(len(each[key]) for each in means.values())
            height = 0.8 / num_levels
            for level in range(num_levels):
                places = np.arange(len(rows))[::-1] + 0.4 - (level + 0.5) * height
                values = [each[key][level] for each in means.values()]
                axes.barh(places, values, height, color=COLORS[level % len(COLORS)], label=f"level {level}")
            labels = [shortened(label, 36) for label in rows] if column == 0 else [""] * len(rows)
            axes.set_yticks(np.arange(len(rows))[::-1], labels, color=INK)
            axes.set_xlim(0, max(axes.get_xlim()[1], 0.25 * least))
            axes.set_xlabel(words + (", degrees" if key == "degrees" else ""))
            axes.grid(visible=False, axis="y")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=6, frameon=False)
        return figure


def _drift_means(members: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    relative = np.mean([each["drift"]["relative"] for each in members], axis=0)
    cosine = np.mean([each["drift"]["cosine"] for each in members], axis=0)
    return {"relative": relative, "degrees": np.degrees(np.arccos(np.clip(cosine, -1, 1)))}


def looks_figure(records: Labelled) -> Figure:
    """Per row, the mean over pictures of where MLLM and pooler look, before and after, beside where the bird is.

    All maps of one looker have one scale, from 0 to its largest cell; under each stands the share that falls on the bird.
    """
    with styled():
        rows = {label: members[0] for label, members in by_label(records).items() if "mllm_map" in _looks(members[0])}
        if not rows:
            return _empty("No maps.")
        columns = [(who, when) for who in ("mllm", "pooler") for when in ("before", "after")]
        largest = {who: _largest_cell(rows.values(), f"{who}_map") for who in ("mllm", "pooler")}
        figure = new_figure(1.55 * (len(columns) + 1) + 1.2, 0.5 + 1.85 * len(rows))
        for row, (label, record) in enumerate(rows.items()):
            looks = {when: record[when]["looks"] for when in ("before", "after")}
            shown = [("the bird", looks["after"].get("bird_map"), looks["after"].get("bird_area"), None)]
            for who, when in columns:
                title = f"{'MLLM' if who == 'mllm' else who} {when}"
                shown.append((title, looks[when].get(f"{who}_map"), looks[when].get(f"{who}_on_bird"), largest[who]))
            for column, (title, map_T, share, most) in enumerate(shown):
                axes = figure.add_subplot(len(rows), len(shown), row * len(shown) + column + 1)
                _draw_map(axes, map_T, looks["after"]["grid_hw"], most)
                axes.set_title(title if row == 0 else "", fontsize=9)
                axes.set_xlabel("" if share is None else f"{100 * share:.1f} %", fontsize=8)
                if column == 0:
                    axes.set_ylabel(shortened(label, 24), fontsize=8)
        return figure


def _looks(record: Mapping[str, Any]) -> Mapping[str, Any]:
    # Both or nothing: a map beside an empty panel compares nothing.
    return {key: value for key, value in record["before"]["looks"].items() if key in record["after"]["looks"]}


def _largest_cell(records: Iterable[Mapping[str, Any]], name: str) -> float | None:
    looks = [record[when]["looks"] for record in records for when in ("before", "after")]
    return max((max(each[name]) for each in looks if name in each), default=None)


def _draw_map(axes: Axes, map_T: Sequence[float] | None, grid_hw: Sequence[int], largest: float | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    if map_T is not None:
        axes.imshow(np.asarray(map_T, float).reshape(tuple(grid_hw)), cmap="inferno", vmin=0, vmax=largest)


def _panels(
    runs: Sequence[CurveRun],
    draw: Callable[[Axes, CurveRun], None],
    names: Sequence[tuple[str, str, str]],
    draw_below: Callable[[Axes, CurveRun], None] | None = None,
) -> Figure:
    """One column per run, at most four side by side, with one legend of (words, colour, dash) over all."""
    from matplotlib.lines import Line2D

    with styled():
        if not runs:
            return _empty("No run logged these numbers.")
        draws = [draw] if draw_below is None else [draw, draw_below]
        num_columns = min(4, len(runs))
        num_rows = -(-len(runs) // num_columns) * len(draws)
        figure = new_figure(max(5.2, 3.2 * num_columns), 0.5 + 2.4 * num_rows)
        for place, run in enumerate(runs):
            for below, each in enumerate(draws):
                row = place // num_columns * len(draws) + below
                axes = figure.add_subplot(num_rows, num_columns, row * num_columns + place % num_columns + 1)
                each(axes, run)
                if place % num_columns:
                    axes.set_ylabel("")  # the column on the left has it
                if below == 0:
                    axes.set_title(shortened(run.label, 34))
                if below == len(draws) - 1:
                    axes.set_xlabel("step")
        handles = [Line2D([], [], color=color, ls=dash, lw=2) for _, color, dash in names]
        words = [shortened(each, 48) for each, _, _ in names]
        figure.legend(handles, words, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return figure


def _empty(words: str) -> Figure:
    figure = new_figure(5, 1)
    figure.text(0.5, 0.5, words, ha="center", color=MUTED)
    return figure
