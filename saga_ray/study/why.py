"""What training changed in rows that were diagnosed: pictures, and under each a sentence with the numbers it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saga_ray.leaderboard import diagnosis_plots
from saga_ray.leaderboard.plots import CurveRun, curve_points
from saga_ray.study.file import Block, Study
from saga_ray.study.plan import Planner
from saga_ray.study.plots import Picture
from saga_ray.study.record import Record, Records

_NAMING = (
    "Attributes that the frozen MLLM names rightly through the encoder, on classes that it was not trained on. "
    "A bar above the grey one means that training showed the MLLM more than the initial encoder did."
)
_PROBES = (
    "Attributes that a linear probe reads from the one pooled embedding, on classes that the probe never saw. "
    "What the MLLM can name but no probe can read has not reached the embedding."
)
_REWARDS = (
    "Reward on training classes beside verdicts and names on validation classes. "
    "Where the first rises alone, the encoder satisfies the reader without showing the attributes."
)
_GRADIENTS = (
    "Lengths of the losses' gradients at the tokens, and their cosine to the metric loss's. "
    "A loss that is many times shorter hardly moves the encoder, whatever it asks for."
)
_AGREEMENT = (
    "Share of pairs whose answers all earned the same reward, and so carry no gradient. "
    "At 1 there is nothing left for GRPO to learn from."
)
_DRIFT = (
    "How far the tokens moved from the initial encoder's, level by level. "
    "The embedding reads level 0, the MLLM all of them."
)
_LOOKS = (
    "Where the MLLM and the pooler look, before and after training, as a mean over pictures of the first seed. "
    "The number is the share that falls on the bird."
)


def why_pictures(study: Study, planner: Planner, records: Records) -> Iterator[Picture]:
    """Of the first block that has diagnosed rows; of others that ask for it, what differs between encoders."""
    is_first = True
    for block in study.blocks:
        if not (is_first or block.diagnose):
            continue
        found = _looked_into(planner, block, records)
        if found:
            yield from _of_encoders(block.name, [(row, record.diagnosis or {}) for row, record in found])
            if is_first:
                yield from _of_training(block.name, found, _asked(study, planner, records))
            is_first = False


def _looked_into(planner: Planner, block: Block, records: Records) -> list[tuple[str, Record]]:
    """Rows of a block and their diagnosed records, seed by seed."""
    done = _records_of(planner, block, records)
    return [(row, record) for row, record in done if record.diagnosis]


def _records_of(planner: Planner, block: Block, records: Records) -> list[tuple[str, Record]]:
    cells = planner.plan(records.get, [block.name]).cells
    return [(cell.row, record) for cell in cells if cell.task and (record := records.get(cell.task.name))]


def _of_encoders(name: str, looked: diagnosis_plots.Labelled) -> Iterator[Picture]:
    plots = diagnosis_plots
    yield Picture(f"naming-{name}", plots.naming_bars(looked), f"{_NAMING} {naming_words(looked)}")
    yield Picture(f"probes-{name}", plots.probe_bars(looked), f"{_PROBES} {named_words(plots.probe_means(looked))}")
    yield Picture(f"drift-{name}", plots.drift_bars(looked), f"{_DRIFT} {drift_words(looked)}")
    yield Picture(f"looks-{name}", plots.looks_figure(looked), f"{_LOOKS} {look_words(looked)}".strip())


def _of_training(name: str, found: Sequence[tuple[str, Record]], asked: Sequence[CurveRun]) -> Iterator[Picture]:
    runs = [CurveRun(row, _lines(record)) for row, record in _firsts(found)]
    watched, plots = asked or runs, diagnosis_plots
    yield Picture(f"rewards-{name}", plots.reward_and_verdicts(watched), f"{_REWARDS} {reward_words(watched)}".strip())
    yield Picture(f"gradients-{name}", plots.gradient_curves(runs), f"{_GRADIENTS} {gradient_words(runs)}".strip())
    agreement = change_words(runs, "grpo/zero_advantage_share")
    yield Picture(f"agreement-{name}", plots.zero_advantage_curves(runs), f"{_AGREEMENT} {agreement}".strip())


def named_words(means: Mapping[str, float]) -> str:
    """Means over all attributes, in percent."""
    return _sentence("Over all attributes, in percent", [f"{label} {100 * mean:.1f}" for label, mean in means.items()])


def naming_words(looked: diagnosis_plots.Labelled) -> str:
    """Means over all attributes of all answers, and of those in form: an answer that is not in form names nothing."""
    named = diagnosis_plots.naming_means(looked)
    before = [record["before"]["well_formed"] for _, record in looked]
    in_form = {diagnosis_plots.BEFORE: float(np.mean(before))} | _means(
        looked, lambda each: each["after"]["well_formed"]
    )
    parts = [
        f"{label} {100 * in_form[label]:.0f} and {100 * mean / in_form[label]:.1f}"
        for label, mean in named.items()
        if in_form[label] > 0
    ]
    return f"{named_words(named)} {_sentence('Answers in form, and what these alone name, in percent', parts)}".strip()


def reward_words(runs: Sequence[CurveRun]) -> str:
    """How reward and verdicts went, row by row."""
    keys = {"reward/mean": "reward", "validation/verdict": "verdicts", "validation/naming": "names"}
    told = {run.label: [f"{name} {_change(run, key)}" for key, name in keys.items() if _has(run, key)] for run in runs}
    return _sentence(_FIFTHS, [f"{label}: {', '.join(words)}" for label, words in told.items() if words], "; ")


def gradient_words(runs: Sequence[CurveRun]) -> str:
    """How long each loss's gradient is beside the metric loss's, and their mean cosine."""
    parts = []
    for run in runs:
        for name in ("grpo", "reference_kl", "consensus"):
            key, cosine = f"gradient/{name}", "gradient/cosine" if name == "grpo" else f"gradient/cosine_{name}"
            if _has(run, key) and _has(run, "gradient/metric"):
                ratio = np.median(curve_points(run, key)[1]) / np.median(curve_points(run, "gradient/metric")[1])
                parts.append(f"{run.label}: {name} {ratio:.1f} times the metric loss's")
                parts[-1] += f", cosine {curve_points(run, cosine)[1].mean():.3f}" if _has(run, cosine) else ""
    return _sentence("Medians of lengths and means of cosines", parts, "; ")


def change_words(runs: Sequence[CurveRun], key: str) -> str:
    """A number's mean over the first and the last fifth of each run."""
    return _sentence(_FIFTHS, [f"{run.label} {_change(run, key)}" for run in runs if _has(run, key)])


def drift_words(looked: diagnosis_plots.Labelled) -> str:
    """How far level 0 moved, relative to its length."""
    moved = _means(looked, lambda record: record["drift"]["relative"][0])
    return _sentence("Level 0, relative to its length", [f"{label} {mean:.2f}" for label, mean in moved.items()])


def look_words(looked: diagnosis_plots.Labelled) -> str:
    """The share of what the pooler looks at that is bird, in percent, over all seeds."""
    looked = [
        each for each in looked if all("pooler_on_bird" in each[1][when]["looks"] for when in ("before", "after"))
    ]
    before = _means(looked, lambda record: 100 * record["before"]["looks"]["pooler_on_bird"])
    after = _means(looked, lambda record: 100 * record["after"]["looks"]["pooler_on_bird"])
    parts = [f"{label} {before[label]:.1f} to {after[label]:.1f}" for label in before]
    return _sentence("The pooler's, over all seeds, in percent", parts)


_FIFTHS = "First to last fifth of the steps"


def _change(run: CurveRun, key: str) -> str:
    values = curve_points(run, key)[1]
    num = -(-len(values) // 5)
    return f"{values[:num].mean():.2f} to {values[-num:].mean():.2f}"


def _has(run: CurveRun, key: str) -> bool:
    return bool(curve_points(run, key)[0].size)


def _means(looked: diagnosis_plots.Labelled, value: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
    rows = diagnosis_plots.by_label(looked)
    return {row: float(np.mean([value(record) for record in members])) for row, members in rows.items()}


def _sentence(head: str, parts: Sequence[str], between: str = ", ") -> str:
    return f"{head}: {between.join(parts)}." if parts else ""


def _asked(study: Study, planner: Planner, records: Records) -> list[CurveRun]:
    """One run per row of the first block that asked the MLLM about validation classes as it went (`evaluation.watch_steps`)."""
    for block in study.blocks:
        done = _records_of(planner, block, records)
        if found := [(row, record) for row, record in done if "validation/verdict" in record.curves]:
            return [CurveRun(row, _lines(record)) for row, record in _firsts(found)]
    return []


def _firsts(found: Sequence[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """The first record of every row."""
    rows: dict[str, Record] = {}
    for row, record in found:
        rows.setdefault(row, record)
    return list(rows.items())


def _lines(record: Record) -> list[dict[str, float]]:
    """A record's curves as lines of a metrics.jsonl."""
    steps = range(len(record.curves.get("step", ())))
    return [
        {key: values[place] for key, values in record.curves.items() if values[place] is not None} for place in steps
    ]
