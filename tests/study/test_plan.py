"""What a study does, in which order, and what it never does twice."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from saga_ray.storage import Storage
from saga_ray.study.plan import Task, digest, seconds_left
from saga_ray.study.record import Record, Records, rounded, thinned
from saga_ray.study.run import run_study
from saga_ray.study.work import _run_name, scorer_tokens, steps_done
from tests.study.fakes import STUDY, FakeHands, Lines, fake_record, small_study


def test_tables_wait_for_the_trials_of_their_row(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    plan = planner.plan(records.get)
    assert [task.kind for task in plan.tasks] == ["trial"] * 12 + ["final"] * 2  # 4 rows x 3, pretrained x 2 seeds
    assert plan.num_waiting == 8
    assert all(task.config.evaluation.split == "validation" for task in plan.tasks if task.kind == "trial")
    assert {task.seed for task in plan.tasks if task.kind == "trial"} == {7}
    trials = [task for task in plan.tasks if task.row == "saga"]
    for task, recall in zip(trials, (0.5, 0.8, 0.6), strict=True):
        records.write(fake_record(task, recall))
    finals = [task for task in planner.plan(records.get).tasks if task.row == "saga" and task.kind == "final"]
    assert [task.seed for task in finals] == [0, 1]
    assert all(task.values == trials[1].values and task.config.evaluation.split == "test" for task in finals)
    assert finals[0].config.loss.weights.grpo == trials[1].values["loss.weights.grpo"]
    choice = planner.choice("saga", study.blocks[0], records.get)
    assert choice is not None and choice.score == pytest.approx(0.8)


def test_equal_scores_choose_the_defaults_and_what_is_not_a_number_is_not_chosen(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    first, second, third = planner.trials("pf", study.blocks[0])
    records.write(fake_record(first, 0.5))
    records.write(fake_record(second, 0.5))
    assert planner.choice("pf", study.blocks[0], records.get) is None
    records.write(fake_record(third, 0.9, status="failed"))
    assert planner.choice("pf", study.blocks[0], records.get) is None  # it is tried again before anything is chosen
    records.write(fake_record(third, 0.9, status="not a number"))
    choice = planner.choice("pf", study.blocks[0], records.get)
    assert choice is not None and choice.values == {}


class SlowHands(FakeHands):
    """Patience ends once before anything does."""

    def __init__(self) -> None:
        super().__init__(2, lambda task: fake_record(task, 0.5))
        self.patience: list[float] = []

    def ended(self, patience_s: float) -> list[tuple[Task, Record]]:
        self.patience.append(patience_s)
        return [] if len(self.patience) == 1 else super().ended(patience_s)


def test_long_runs_are_told_of_while_they_run(tmp_path: Path) -> None:
    blocks = [{"name": "main", "rows": ["pf", "saga"], "tuned_on": "defaults"}]
    _, planner, records = small_study(tmp_path, blocks=blocks)
    lines, hands, runs = Lines(), SlowHands(), Storage.open(tmp_path / "runs")
    first = planner.plan(records.get).tasks[0]
    log = runs.local_path(first.name) / _run_name(first.config) / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')  # the third is being written
    steps = functools.partial(steps_done, runs)
    run_study(planner, records, hands, lines, steps_done=steps, patience_s=7)
    assert hands.patience == [7] * 3 and len(lines.lines) == 3
    assert lines.lines[0] == "final pf, home, paper, seed 0: step 2; final saga, home, paper, seed 0: step 0"


def test_several_seeds_of_a_point_count_as_their_mean(tmp_path: Path) -> None:
    tuning = {"trials": 2, "seeds": [0, 1], "space": {"optim.lr_tower": {"loguniform": [5e-5, 1e-3]}}}
    study, planner, records = small_study(tmp_path, tuning=tuning)
    trials = planner.trials("pf", study.blocks[0])
    assert [(task.values == {}, task.seed) for task in trials] == [(True, 0), (True, 1), (False, 0), (False, 1)]
    for task, recall in zip(trials, (0.9, 0.2, 0.6, 0.6), strict=True):
        records.write(fake_record(task, recall))
    choice = planner.choice("pf", study.blocks[0], records.get)
    assert choice is not None and choice.values == trials[2].values and choice.score == pytest.approx(0.6)


def test_a_run_is_known_under_the_name_of_another_row(tmp_path: Path) -> None:
    rows = STUDY["rows"] | {"again": {"method": "potential-field", "kind": "baseline"}}
    blocks = [{"name": name, "rows": [name], "tuned_on": "defaults"} for name in ("pf", "again", "pa")]
    _, planner, records = small_study(tmp_path, rows=rows, blocks=blocks)
    pf, again, pa = planner.plan(records.get).tasks
    records.write(fake_record(pf, 0.5, status="failed"))
    assert records.get(again.name) is None, "what failed is no run"
    records.write(fake_record(pf, 0.5))
    assert records.get(again.name) == records.get(pf.name) is not None
    assert planner.plan(records.get).open(records.get) == [pa]
    assert Records(records.folder).get(again.name) == records.get(pf.name)


def test_a_block_may_ask_for_more_rows_to_be_looked_into(tmp_path: Path) -> None:
    blocks = [
        {"name": "one", "rows": ["pf", "saga"], "tuned_on": "defaults"},
        {"name": "two", "rows": ["pf", "saga"], "tuned_on": "defaults", "diagnose": ["pf"]},
    ]
    _, planner, records = small_study(tmp_path, blocks=blocks)
    plan = planner.plan(records.get)
    assert {task.row: task.diagnose for task in plan.tasks} == {"pf": True, "saga": False}, (
        "one run does for both blocks"
    )
    for task in plan.tasks:
        records.write(fake_record(task, 0.5))
    # It is done, but nobody has looked into it.
    (pf,) = planner.plan(records.get).open(records.get)
    assert pf.row == "pf" and planner.plan(records.get, ["one"]).open(records.get) == []
    records.write(fake_record(pf, 0.5).model_copy(update={"diagnosis": {"drift": 1}}))
    assert planner.plan(records.get).open(records.get) == []
    with pytest.raises(ValueError, match="'pretrained'"):
        small_study(tmp_path, blocks=[{"name": "one", "rows": ["pf"], "diagnose": ["pretrained"]}])


def test_blocks_share_equal_runs_and_trials(tmp_path: Path) -> None:
    blocks = [
        {"name": "main", "rows": ["pf"], "seeds": [0]},
        {"name": "worlds", "rows": ["pf"], "world": ["home", "away"], "seeds": [0]},
        {"name": "strong", "rows": ["pf"], "seeds": [0], "set": {"data.pairs_per_batch": 8}},
        {"name": "long", "rows": ["pf"], "budget": "long", "tuned_on": {"budget": "paper"}},
        {"name": "as-it-is", "rows": ["pf"], "tuned_on": "defaults", "split": "validation"},
    ]
    _, planner, records = small_study(tmp_path, blocks=blocks)
    hands = FakeHands(2, lambda task: fake_record(task, 0.5))
    plan = run_study(planner, records, hands, Lines())
    assert hands.most_at_once == 2
    assert [task.kind for task in plan.tasks].count("trial") == 3
    names = [cell.task.name for cell in plan.cells if cell.task]
    assert len(names) == 6 and len(set(names)) == 5 and names[0] == names[1]
    assert [cell.task.config.evaluation.split for cell in plan.cells if cell.task][-1] == "validation"
    assert len(hands.started) == len(plan.tasks) == 8


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    _, planner, records = small_study(tmp_path)
    now = 0.0

    def clock() -> float:
        return now

    def slow(task):
        nonlocal now
        now += 60
        return fake_record(task, 0.5)

    hands = FakeHands(1, slow)
    run_study(planner, records, hands, Lines(), limit_s=300, clock=clock)
    assert len(hands.started) == 5
    seen = Records(records.folder)  # as another process reads them
    rest = FakeHands(1, slow)
    plan = run_study(planner, seen, rest, Lines())
    assert len(rest.started) == 22 - 5 and not {t.name for t in rest.started} & {t.name for t in hands.started}
    assert plan.open(seen.get) == [] and plan.num_waiting == 0
    gone = plan.tasks[3].name
    records.folder.delete(f"{gone}.json")
    again = FakeHands(1, slow)
    run_study(planner, seen, again, Lines())
    assert [task.name for task in again.started] == [gone]


def test_what_fails_stops_nothing_else_and_is_tried_again_next_time(tmp_path: Path) -> None:
    _, planner, records = small_study(tmp_path)
    broken = {"saga"}
    hands = FakeHands(2, lambda task: fake_record(task, 0.5, status="failed" if task.row in broken else "finished"))
    lines = Lines()
    plan = run_study(planner, records, hands, lines)
    assert plan.num_waiting == 2 and {task.row for task in plan.open(records.get)} == {"saga"}
    assert sum("failed (made up)" in line for line in lines.lines) == 3
    broken.clear()
    plan = run_study(planner, records, hands, lines)
    assert plan.num_waiting == 0 and plan.open(records.get) == []
    assert lines.lines[-1].startswith("22 of 22 done, about 0 s left; ")


def test_rows_may_have_other_seeds_than_their_block(tmp_path: Path) -> None:
    blocks = [
        {"name": "main", "rows": ["pf", "pa"], "seeds": [0, 1, 2], "seeds_of": {"pa": [0]}, "tuned_on": "defaults"}
    ]
    _, planner, records = small_study(tmp_path, blocks=blocks)
    assert [(cell.row, cell.seed) for cell in planner.plan(records.get).cells] == [
        ("pf", 0), ("pa", 0), ("pf", 1), ("pf", 2)
    ]  # fmt: skip


def test_rows_may_have_another_budget_than_their_block_and_share_its_records(tmp_path: Path) -> None:
    blocks = [
        {"name": "short", "rows": ["pf"], "seeds": [0], "budget": "paper", "tuned_on": "defaults"},
        {"name": "mixed", "rows": ["pf", "pa"], "seeds": [0], "budget": "long", "budgets_of": {"pf": "paper"},
         "tuned_on": "defaults"},
    ]  # fmt: skip
    study, planner, records = small_study(tmp_path, blocks=blocks)
    plan = planner.plan(records.get)
    assert [(cell.block, cell.row, cell.budget) for cell in plan.cells] == [
        ("short", "pf", "paper"), ("mixed", "pf", "paper"), ("mixed", "pa", "long")
    ]  # fmt: skip
    assert len(plan.tasks) == 2 and plan.cells[0].task is plan.cells[1].task
    for cell in plan.cells:
        assert cell.task is not None
        assert cell.task.config.optim == study.config(cell.row, "home", cell.budget).optim
    assert plan.cells[1].task.config.optim.steps != plan.cells[2].task.config.optim.steps == 100


def test_only_the_named_blocks_are_done(tmp_path: Path) -> None:
    blocks = [{"name": "one", "rows": ["pretrained"]}, {"name": "two", "rows": ["pf"]}]
    _, planner, records = small_study(tmp_path, blocks=blocks)
    assert {task.row for task in planner.plan(records.get, ["one"]).tasks} == {"pretrained"}


def test_a_name_changes_with_what_decides_the_numbers_and_with_nothing_else(tmp_path: Path) -> None:
    study, _, _ = small_study(tmp_path)
    config = study.config("saga", "home", "paper")
    name = digest(config, "data", "weights")
    assert name != digest(config, "other", "weights") and name != digest(config, "data", "other")
    for key, value in (("split", "validation"), ("k", (1,))):
        other = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={key: value})})
        assert digest(other, "data", "weights") != name
    for section, key, value in (("resources", "num_scorers", 2), ("checkpoint", "keep", 5), ("data", "root", "/x")):
        other = config.model_copy(update={section: getattr(config, section).model_copy(update={key: value})})
        assert digest(other, "data", "weights") == name


def test_how_it_would_train_does_not_name_a_run_that_trains_nothing(tmp_path: Path) -> None:
    study, _, _ = small_study(tmp_path)
    for row, is_same in (("pretrained", True), ("saga", False)):
        config = study.config(row, "home", "paper")
        other = config.model_copy(update={"optim": config.optim.model_copy(update={"lr_tower": 0.1})})
        assert (digest(other, "data", "weights") == digest(config, "data", "weights")) == is_same


def test_records_are_small_and_come_back_as_they_were(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    record = fake_record(planner.trials("pf", study.blocks[0])[1], 0.512345678, num_classes=80, noise=0.1)
    curves = thinned([{"step": n, "loss/total": n / 7, "seconds": 1.0, "reward/mean": 0.5} for n in range(1, 1001)])
    record = record.model_copy(update={"curves": curves})
    records.write(record)
    assert len(record.to_json()) < 3000 and record.to_json().count(b"\n") == 1
    back = Records(records.folder).get(record.name)
    assert back is not None and back == Record.model_validate(json.loads(record.to_json()))
    assert back.values == record.values and back.scores["recall@1"] == pytest.approx(
        record.scores["recall@1"], rel=1e-4
    )


def test_a_damaged_record_counts_as_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study, planner, records = small_study(tmp_path)
    task = planner.trials("pf", study.blocks[0])[0]
    records.folder.write(f"{task.name}.json", b'{"name": ')
    assert Records(records.folder).get(task.name) is None
    assert "is no record" in caplog.text


def test_curves_keep_means_of_stretches_and_the_last_step_of_each() -> None:
    lines = [{"step": n, "loss/total": float(n)} | ({"reward/mean": 1.0} if n == 2 else {}) for n in range(1, 7)]
    assert thinned(lines, 3) == {"step": (2, 4, 6), "loss/total": (1.5, 3.5, 5.5), "reward/mean": (1.0, None, None)}
    assert thinned([]) == {}
    assert rounded({"a": [0.123456789, 2.0, float(10**7)]}) == {"a": [0.12346, 2, 10**7]}


def test_tokens_of_the_scorer_are_those_of_all_steps() -> None:
    assert scorer_tokens([{"step": 1, "scorer/tokens": 7.0}, {"step": 2}, {"step": 3, "scorer/tokens": 5.0}]) == 12
    assert scorer_tokens([]) == 0


def test_the_time_left_is_judged_by_records_of_the_same_row(tmp_path: Path) -> None:
    _, planner, records = small_study(tmp_path, blocks=[{"name": "main", "rows": ["pf", "saga"]}])
    plan = planner.plan(records.get)
    assert seconds_left(plan, records.get, records.all(), 2) is None
    first = plan.tasks[0]
    records.write(fake_record(first, 0.5))  # 30 s at its whole budget
    shares = sum(task.share for task in plan.tasks[1:]) + plan.num_waiting
    assert seconds_left(plan, records.get, records.all(), 2) == pytest.approx(30 * shares / 2)
