"""What a sweep leaves behind: its trials as a table, the best configuration as YAML, and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from saga_ray.config.keys import nested
from saga_ray.leaderboard.figures import save_figure
from saga_ray.on_ray.sweep import Range, SweepFile
from saga_ray.on_ray.trials import Trial
from saga_ray.storage import Storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(sweep: SweepFile, trials: Sequence[Trial], best: Trial, folder: Storage) -> None:
    """`trials.csv`, `trials.json`, `best.yaml` (for `--config`) and `trials.png`, `.svg`."""
    ordered = sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0.0), trial.name))
    folder.write("trials.csv", trials_csv(sweep, ordered).encode())
    folder.write("trials.json", (json.dumps([asdict(trial) for trial in ordered], indent=1) + "\n").encode())
    folder.write("best.yaml", best_yaml(sweep, best).encode())
    save_figure(parallel_coordinates(sweep, ordered, best), folder, "trials")


def trials_csv(sweep: SweepFile, trials: Sequence[Trial]) -> str:
    """One line per trial; spreadsheets read no cell as a formula."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    keys = list(sweep.space)
    table.writerow(["run", *keys, sweep.metric, "status", "draws", "seconds", "cause"])
    for trial in trials:
        values = [trial.values.get(key) for key in keys]
        cells = [trial.name, *values, trial.score, trial.status, trial.draws, f"{trial.seconds:.1f}", trial.cause]
        table.writerow(["" if cell is None else _harmless(cell) for cell in cells])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def best_yaml(sweep: SweepFile, best: Trial) -> str:
    """The winner as a config file: `saga-ray train DATASET --config best.yaml` trains it."""
    head = {"dataset": sweep.dataset, "method": sweep.method}
    if sweep.recipe is not None:
        head["recipe"] = sweep.recipe
    score = f"{best.score:.4f}" if best.score is not None else "unknown"
    note = f"# Best of {sweep.folder}: {sweep.metric} {score} on the validation classes (run {best.name}).\n"
    return note + yaml.safe_dump(head | nested({**sweep.base, **best.values}), sort_keys=False)


def parallel_coordinates(sweep: SweepFile, trials: Sequence[Trial], best: Trial) -> Figure:
    """One line per trial through its values to its score; the best one drawn thick, trials without a score dotted grey."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(sweep.space)
    scores = [trial.score for trial in trials if trial.score is not None]
    low, high = min(scores), max(scores)
    figure = Figure(figsize=(2.2 + 1.9 * len(keys), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for trial in trials:
        heights = [_height(sweep.space[key], trial.values[key]) for key in keys]
        if trial.score is None:
            axes.plot(range(len(keys)), heights, color="0.7", linewidth=0.8, linestyle=":")
            continue
        share = (trial.score - low) / (high - low) if high > low else 1.0
        width = 3.0 if trial.name == best.name else 1.0
        axes.plot(
            range(len(keys) + 1), [*heights, share], color=colormaps["viridis"](0.9 * share), linewidth=width, alpha=0.9
        )
    for place, key in enumerate(keys):
        for value in _ticks(sweep.space[key]):
            label = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
            axes.annotate(label, (place, _height(sweep.space[key], value)), (4, 0), textcoords="offset points", size=8)
    for share, score in [(1.0, high)] + [(0.0, low)] * (low < high):
        axes.annotate(f"{score:.3f}", (len(keys), share), (4, 0), textcoords="offset points", size=8, va="center")
    for place in range(len(keys) + 1):
        axes.axvline(place, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(keys) + 1), [*keys, f"{sweep.metric}\n(validation)"], size=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(keys) + 0.35)
    axes.set_frame_on(False)
    axes.set_title(f"{sum(trial.score is not None for trial in trials)} trials of {sweep.name}", size=10)
    return figure


def _height(span: Range, value: Any) -> float:
    """Place of a value on its axis, 0 to 1."""
    if span.kind == "choice":
        return list(span.values).index(value) / max(1, len(span.values) - 1)
    low, high = span.values
    if span.kind.startswith("log"):
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _ticks(span: Range) -> list[Any]:
    if span.kind == "choice":
        return list(span.values)
    low, high = span.values
    middle = math.sqrt(low * high) if span.kind.startswith("log") else (low + high) / 2
    return [low, middle, high]
