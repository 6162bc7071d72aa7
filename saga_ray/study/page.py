"""The page of a study: tables as they come out, what was chosen, what is open, and the command behind each number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from saga_ray.leaderboard.figures import to_png
from saga_ray.study.file import Block, Study
from saga_ray.study.plan import Planner
from saga_ray.study.plots import Picture, block_picture, score_title, trial_pictures, tuned_places
from saga_ray.study.record import Records
from saga_ray.study.table import ALL_WORLDS, SCORES, Comparison, Line, Table, block_table, over_worlds
from saga_ray.study.why import why_pictures

PAGE = "results.md"
_READING = (
    "Recall@1 (R@1) and MAP@R in percent. In brackets: 95 % interval, by a bootstrap over query classes (the gallery stays) "
    "crossed with Student's t over seeds, so that few seeds make it wide. With one seed it is over classes alone and says "
    "nothing of another seed. Differences are paired over classes and seeds; p is two-sided, from the same draws, and "
    "corrected (Holm) for the number of comparisons of this score in the block; one seed has none."
)


_OVER_WORLDS = (
    "All worlds together, as for a new one: Student's t over the worlds' means (p corrected for the number of these "
    "comparisons of a score)."
)


def write_page(study: Study, planner: Planner, records: Records, command: str) -> tuple[str, str]:
    """Write `results.md` and its pictures beside the records.

    Args:
        command: What was typed, as it can be typed again.

    Returns:
        Where the page lies, and its tables.
    """
    tables = [block_table(study, planner, block, records.get) for block in study.blocks]
    # What nothing is known of stands in the list of what is open, not as a table of dashes.
    tables = [table for table in tables if any(line.means for line in table.lines)]
    texts = [_block(study, table, command) for table in tables]
    scores = {table.block.name: block_picture(study, table) for table in tables}
    others = [*trial_pictures(study, planner, records), *why_pictures(study, planner, records)]
    for picture in (*scores.values(), *others):
        records.folder.write(f"{picture.name}.png", to_png(picture.figure))
    parts = [
        f"# {study.title or study.name}",
        *([study.note] if study.note else []),
        _open(study, planner, records, command),
        _READING,
    ]
    for number, (table, text) in enumerate(zip(tables, texts, strict=True)):
        shown = f"{text}\n\n{_shown(scores[table.block.name])}"
        parts.append(shown if number == 0 else _folded(shown))
    parts += [_folded(text) for text in _chosen(study, planner, records)]
    parts += [f"{picture.words}\n\n{_shown(picture)}" for picture in others]
    records.folder.write(PAGE, ("\n\n".join(parts) + "\n").encode())
    return records.folder.child(PAGE).uri, "\n\n".join(texts)


def _folded(text: str) -> str:
    """A part under its heading alone, which opens when it is clicked: the page is read from its first block."""
    heading, _, rest = text.partition("\n\n")
    return f"<details><summary>{heading.removeprefix('## ')}</summary>\n\n{rest}\n\n</details>"


def _shown(picture: Picture) -> str:
    return f"![{picture.name}]({picture.name}.png)"


def _block(study: Study, table: Table, command: str) -> str:
    block = table.block
    worlds = study.worlds_of(block)
    about = f"Budget {_budget(study, block)}, {block.split} classes, {_tuned(study, block)}."
    if block.note:
        about = f"{block.note} {about}"
    parts = [f"## {block.name}", about, f"`{command} --block {block.name}`"]
    if block.table == "worlds":
        parts.append(_worlds_table(study, table))
    else:
        for world in worlds:
            lines = [line for line in table.lines if line.world == world]
            parts += [f"World {world}:"] if len(worlds) > 1 else []
            if known := [line for line in lines if line.means]:
                parts += [_scores_table(study, known), *_differences_table(table, world)]
            parts.append(_not_begun(lines))
        if common := over_worlds(study, table):
            parts += [_OVER_WORLDS, *_differences_table(replace(table, comparisons=tuple(common)), ALL_WORLDS)]
    parts.append(_best_words(study, table))
    return "\n\n".join(part for part in parts if part)


def _budget(study: Study, block: Block) -> str:
    others = ", ".join(f"{row} {budget}" for row, budget in block.budgets_of.items())
    return f"{study.budget_of(block)} ({others})" if others else study.budget_of(block)


def _tuned(study: Study, block: Block) -> str:
    tuned = study.tuned_on(block)
    if tuned is None:
        return "every row as the file says it, without trials"
    return f"values chosen by trials in world {tuned[0]} at budget {tuned[1]}"


def _not_begun(lines: Sequence[Line]) -> str:
    rows = [line.row for line in lines if not line.means]
    return f"Not run yet: {', '.join(rows)}." if rows else ""


def _best_words(study: Study, table: Table) -> str:
    if not table.best:
        kinds = {study.rows[row].kind for row in table.block.rows}
        if not kinds & {"baseline", "control"}:
            return ""
        if study.tuned_on(table.block) is None:
            return "No best baseline or control is named: these rows had no trials on validation classes."
        return "No best baseline or control is named: their trials on validation classes have not all ended."
    named = " and ".join(f"the best {kind} is {row}" for kind, row in table.best.items())
    return f"By validation classes {named}."


def _scores_table(study: Study, lines: Sequence[Line]) -> str:
    heads = ["row", "kind", "seeds", *(score_title(score) for score in SCORES), "steps", "seconds", "scorer tokens"]
    rows = []
    for line in sorted(lines, key=lambda line: -line.means[SCORES[0]]):
        num = len(line.seeds)
        seeds = str(num) if num == line.num_wanted else f"{num} of {line.num_wanted}"
        cost = [f"{line.steps:.0f}", f"{line.seconds:.0f}", f"{line.scorer_tokens:,.0f}"]
        rows.append([line.row, study.rows[line.row].kind, seeds, *(_score(line, score) for score in SCORES), *cost])
    return _markdown(heads, rows)


def _differences_table(table: Table, world: str) -> list[str]:
    pairs = dict.fromkeys((each.row, each.reference, each.role) for each in table.comparisons if each.world == world)
    rows = []
    for row, reference, role in pairs:
        found = [table.comparison(row, role, world, score, reference) for score in SCORES]
        against = reference if role == "named" else f"{reference} (best {role})"
        rows.append([row, against, *(_difference(each) for each in found if each)])
    return [_markdown(["row", "minus", *(score_title(score) for score in SCORES)], rows)] if rows else []


def _worlds_table(study: Study, table: Table) -> str:
    worlds = study.worlds_of(table.block)
    rows = [
        [row, study.rows[row].kind, *(_pair(table.line(row, world)) for world in worlds)] for row in table.block.rows
    ]
    for row, reference, kind in _worlds_pairs(study, table):
        found = [[table.difference(row, reference, world, score) for score in SCORES] for world in worlds]
        cells = [" / ".join(_short_difference(each) if each else "-" for each in pair) for pair in found]
        rows.append([f"{row} minus {reference}", kind, *cells])
    if any(named := [_named_before(table, world) for world in worlds]):
        rows.append(["named by the MLLM before training, in percent", "validation classes", *named])
    return "R@1 / MAP@R:\n\n" + _markdown(["row", "kind", *worlds], rows)


def _named_before(table: Table, world: str) -> str:
    """Share of attributes that the MLLM names through the initial encoder, of all answers, if any run was looked into."""
    runs = [run for line in table.lines if line.world == world for run in line.runs.values() if run.diagnosis]
    named = runs[0].diagnosis["before"]["named"] if runs and runs[0].diagnosis else None
    return "" if named is None else f"{100 * named:.0f}"


def _worlds_pairs(study: Study, table: Table) -> list[tuple[str, str, str]]:
    """(row, minus, what that is): what there is to win, and what the block names."""
    ceilings = [row for row in table.block.rows if study.rows[row].kind == "ceiling"]
    pairs = [(row, table.best[role], f"best {role}") for row in ceilings for role in table.best]
    known = {(row, reference) for row, reference, _ in pairs}
    return pairs + [(*pair, study.rows[pair[1]].kind) for pair in table.block.compare if pair not in known]


def _pair(line: Line) -> str:
    return " / ".join(f"{100 * line.means[score]:.1f}" for score in SCORES) if line.means else "-"


def _score(line: Line, score: str) -> str:
    low, high = line.intervals[score]
    return f"{100 * line.means[score]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(each: Comparison) -> str:
    if math.isnan(each.p):
        return f"{_short_difference(each)}, one seed"
    return f"{_short_difference(each)}, p {_p(each.corrected)} (alone {_p(each.p)})"


def _short_difference(each: Comparison) -> str:
    low, high = each.interval
    return f"{100 * each.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(p: float) -> str:
    return f"{p:.2g}" if p < 0.995 else "1"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _chosen(study: Study, planner: Planner, records: Records) -> list[str]:
    """The trials of every row, once for each world and budget that rows are tuned on."""
    metric = score_title(study.tuning.metric)
    heads = ["row", "chosen", f"validation {metric}", "as the file says it", "all trials"]
    parts = []
    for (world, budget), (block, names) in tuned_places(study).items():
        rows = []
        for row in names:
            choice = planner.choice(row, block, records.get)
            scores = _trial_scores(planner, row, block, records)
            if set(scores) == {"open"}:
                continue
            chosen = "open" if choice is None else _values(choice.values)
            best = "-" if choice is None else f"{100 * choice.score:.1f}"
            rows.append([row, chosen, best, scores[0], " ".join(scores)])
        if rows:
            parts.append(f"## Chosen values, world {world}, budget {budget}\n\n" + _markdown(heads, rows))
    return parts


def _trial_scores(planner: Planner, row: str, block: Block, records: Records) -> list[str]:
    """A word per trial, in the order of the points; the runs of a point with several seeds stand side by side."""
    words = []
    for task in planner.trials(row, block):
        record = records.get(task.name)
        score = record and record.scores.get(planner.study.tuning.metric)
        words.append("open" if record is None else record.status if score is None else f"{100 * score:.1f}")
    return words


def _values(values: Any) -> str:
    shown = [f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()]
    return ", ".join(shown) or "as the file says it"


def _open(study: Study, planner: Planner, records: Records, command: str) -> str:
    lines = []
    for block in study.blocks:
        plan = planner.plan(records.get, [block.name])
        num_open, num_all = len(plan.open(records.get)) + plan.num_waiting, len(plan.tasks) + plan.num_waiting
        failed = [task for task in plan.tasks if (record := records.get(task.name)) and record.status == "failed"]
        if num_open:
            why = f"; failed: {failed[0].title} ({records.get(failed[0].name).cause})" if failed else ""  # type: ignore[union-attr]
            lines.append(f"- {block.name}: {num_open} of {num_all} runs open{why}")
    done = [record for record in records.all() if record.status == "finished"]
    hours = sum(record.wall_s for record in done) / 3600
    devices = ", ".join(sorted({record.device for record in done})) or "nothing"
    versions = len({record.code for record in done})
    made_by = f", made by {versions} versions of the code (`code` of a record names its own)" if versions > 1 else ""
    cost = f"{len(done)} records, {hours:.2g} hours of one process in all on {devices}{made_by}."
    if not lines:
        return f"Everything that the file asks for is done: {cost} `{command}` makes it."
    return f"Not done yet (`{command}` goes on with it); so far {cost}\n\n" + "\n".join(lines)
