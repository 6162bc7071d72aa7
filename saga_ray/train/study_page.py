"""The page of a study: board with intervals, curves, galleries, and pairs with the MLLM's answers, in one offline folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_ray.config import RunConfig
from saga_ray.configure import label
from saga_ray.data import load_dataset
from saga_ray.leaderboard.board import BASELINES, BoardRow, leaderboard
from saga_ray.leaderboard.gallery import GalleryRun, write_gallery
from saga_ray.leaderboard.pages import JudgedPair, Link, write_demo_page
from saga_ray.leaderboard.plots import CurveRun, read_metrics
from saga_ray.leaderboard.result import Result
from saga_ray.leaderboard.store import ResultStore
from saga_ray.storage import Storage
from saga_ray.train.logs import METRICS
from saga_ray.train.loop import TrainResult
from saga_ray.train.progress import Progress
from saga_ray.train.showcase import judged_pairs


@dataclass(frozen=True)
class StudyRun:
    """A finished run of the study."""

    config: RunConfig
    outcome: TrainResult

    @property
    def key(self) -> str:
        """Key of its result in the store: an equal run under another name may have put it there."""
        return Result.model_validate({name: self.outcome.row[name] for name in Result.model_fields}).key


def study_rows(runs: Storage, members: Sequence[StudyRun]) -> list[BoardRow]:
    """The board of the study's own rows: other runs in the same folder stay out."""
    config = members[0].config
    keys = {member.key for member in members}
    results = [result for result in ResultStore(runs).load() if result.key in keys]
    return leaderboard(results, config.dataset, config.evaluation.split)


def write_study_page(
    runs: Storage,
    members: Sequence[StudyRun],
    progress: Progress,
    *,
    title: str,
    num_pairs: int = 8,
    commands: Sequence[tuple[str, str]] = (),
) -> str:
    """Write `index.html` beside the runs, and everything that it shows.

    Galleries compare the best baseline with every method that asks the MLLM, by the first seed of each.

    Returns:
        Where the page lies.
    """
    first = members[0].config
    progress.stage("drawing the table and the curves")
    dataset = load_dataset(first)
    table = dataset.split(first.evaluation.split)
    rows = study_rows(runs, members)
    store = ResultStore(runs)
    results = {result.key: result for result in store.load()}
    leaders = [member for member in members if member.config.seed == first.seed]
    base = _best_baseline(rows, leaders)
    links: list[Link] = []
    pairs: list[JudgedPair] = []
    for member in leaders:
        if (member is base and len(leaders) > 1) or not _is_shown(member, leaders):
            continue
        run = _gallery_run(store, member, results)
        progress.stage(f"gallery of {run.label}")
        shown = [run]
        if base is not None and base is not member:
            shown.insert(0, _gallery_run(store, base, results))
        folder = f"gallery-{member.config.method}"
        words = f"{shown[0].label} and {run.label}" if len(shown) == 2 else run.label
        write_gallery(
            runs.child(folder),
            f"Queries and neighbours: {words}",
            table,
            shown,
            details=f"{len(table)} images of unseen classes",
        )
        links.append(Link(f"Queries and their neighbours: {words}", f"{folder}/index.html"))
        if member.config.learns_from_the_mllm and not pairs:
            progress.stage("asking the MLLM about some pairs")
            pairs = judged_pairs(member.config, member.outcome.uri, table, run.per_query, num_pairs)
    progress.stage("writing the page")
    return write_demo_page(
        runs,
        title,
        rows,
        summary=_summary(members, rows),
        curves=[_curve(member, runs) for member in leaders],
        links=links,
        pairs=pairs,
        commands=commands,
    )


def _is_shown(member: StudyRun, leaders: Sequence[StudyRun]) -> bool:
    asking = [other for other in leaders if other.config.learns_from_the_mllm]
    return member.config.learns_from_the_mllm if asking else member is leaders[-1]


def _best_baseline(rows: Sequence[BoardRow], leaders: Sequence[StudyRun]) -> StudyRun | None:
    best = next((row.label for row in rows if row.method in BASELINES), None)
    return next((member for member in leaders if label(member.config) == best), None)


def _gallery_run(store: ResultStore, member: StudyRun, results: dict[str, Result]) -> GalleryRun:
    per_query = store.per_query(results[member.key])
    assert per_query is not None, "every run stores its queries"
    return GalleryRun(label(member.config), per_query)


def _curve(member: StudyRun, runs: Storage) -> CurveRun:
    folder = runs.child(member.outcome.name)
    lines = read_metrics(folder.read(METRICS)) if folder.exists(METRICS) else []
    return CurveRun(label(member.config), lines)


def _summary(members: Sequence[StudyRun], rows: Sequence[BoardRow]) -> str:
    config = members[0].config
    steps = max(member.outcome.num_steps for member in members)
    seeds = len({member.config.seed for member in members})
    classes = f"{rows[0].num_queries} images of {rows[0].num_classes} classes that training never saw" if rows else ""
    said = (
        f"{len({label(m.config) for m in members})} methods on the data set '{config.dataset}', {steps} steps each, "
        f"{seeds} seed{'s' if seeds != 1 else ''}; measured on {classes}."
    )
    return f"{said} {outside_note(members)}".strip()


def outside_note(members: Sequence[StudyRun]) -> str:
    """What must stand beside rows in which the bundled MLLM was shown pictures that it does not know; else nothing."""
    strangers = [label(m.config) for m in members if m.config.learns_from_the_mllm and m.config.mllm.path is None]
    if not strangers or members[0].config.dataset == "demo":
        return ""
    return (
        f"Out of domain: the bundled demo MLLM knows drawn birds only, so the row{'s' if len(set(strangers)) > 1 else ''} "
        f"{', '.join(dict.fromkeys(strangers))} show{'s' if len(set(strangers)) == 1 else ''} the code at work, not the method."
    )
