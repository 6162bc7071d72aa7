"""Intervals, paired differences, corrected p values, and the page that shows them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from saga_ray.leaderboard.statistics import NUM_RESAMPLES, bootstrap_means, holm, two_sided_p
from saga_ray.study.page import _worlds_table, write_page
from saga_ray.study.plan import Task
from saga_ray.study.record import Record
from saga_ray.study.run import run_study
from saga_ray.study.table import block_table, over_worlds
from tests.study.fakes import FakeHands, Lines, fake_record, small_study

RECALL = {"pretrained": 0.4, "pf": 0.6, "pa": 0.55, "pooler": 0.6, "saga": 0.66}


def by_row(task: Task) -> Record:
    return fake_record(task, RECALL[task.row] + 0.01 * task.seed, noise=0.15)


def test_holm_as_worked_by_hand() -> None:
    # sorted .01 .02 .03 .5: 4 x .01, 3 x .02, 2 x .03, 1 x .5; the third may not fall below the second
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_sided_p_as_worked_by_hand() -> None:
    assert two_sided_p(np.array([1.0, 2.0, 3.0, -1.0])) == pytest.approx(2 * (1 + 1) / 5)
    assert two_sided_p(np.ones(99)) == pytest.approx(0.02)
    assert two_sided_p(np.zeros(50)) == 1.0


def test_a_known_difference_is_found_and_equal_rows_are_not_different(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    run_study(planner, records, FakeHands(1, by_row), Lines())
    table = block_table(study, planner, study.blocks[0], records.get)
    assert table.best == {"baseline": "pf", "control": "pooler"}
    found = table.comparison("saga", "baseline", "home", "recall@1")
    assert found is not None and found.reference == "pf"
    assert found.mean == pytest.approx(0.06, abs=0.005) and found.interval[0] > 0
    assert found.p == pytest.approx(2 / (NUM_RESAMPLES + 1)) and found.corrected == pytest.approx(3 * found.p)
    equal = table.comparison("pooler", "baseline", "home", "recall@1")
    assert equal is not None and (equal.mean, equal.interval, equal.corrected) == (0.0, (0.0, 0.0), 1.0)
    line = table.line("saga", "home")
    assert (line.seeds, line.num_queries) == ((0, 1), 300)
    assert line.intervals["recall@1"][0] < line.means["recall@1"] < line.intervals["recall@1"][1]
    # Paired over classes: the difference is known far better than either row.
    low, high = line.intervals["recall@1"]
    assert found.interval[1] - found.interval[0] < (high - low) / 5


@pytest.mark.parametrize("seed_sd", [0.0, 0.03])
def test_rows_that_differ_by_seeds_and_noise_alone_are_seldom_called_different(seed_sd: float) -> None:
    generator, num = np.random.default_rng(0), np.full(40, 10)
    ps = []
    for _ in range(200):
        shares = 0.6 + 0.15 * generator.standard_normal((2, 3, 40)) + seed_sd * generator.standard_normal((2, 3, 1))
        first, second = 10 * np.clip(shares, 0, 1)
        ps.append(two_sided_p(bootstrap_means(first - second, num, [0, 1, 2])))
    assert np.mean(np.array(ps) < 0.05) < 0.09


def test_a_single_seed_has_no_p(tmp_path: Path) -> None:
    blocks = [
        {"name": "main", "rows": ["pf", "saga"], "seeds": [0], "compare": [["saga", "pf"]], "tuned_on": "defaults"}
    ]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    run_study(planner, records, FakeHands(1, by_row), Lines())
    (each, _) = block_table(study, planner, study.blocks[0], records.get).comparisons
    assert np.isnan(each.p) and each.interval[0] > 0
    page = write_page(study, planner, records, "saga-ray study mine.yaml")[1]
    assert re.search(r"\| saga \| pf \| \+\d\.\d \[.*\], one seed \|", page)


def test_the_best_baseline_is_chosen_on_validation_classes_even_if_the_test_says_otherwise(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    on_test = RECALL | {"pa": 0.9}
    outcome = lambda task: fake_record(task, (RECALL if task.kind == "trial" else on_test)[task.row])  # noqa: E731
    run_study(planner, records, FakeHands(1, outcome), Lines())
    assert block_table(study, planner, study.blocks[0], records.get).best["baseline"] == "pf"


def test_before_all_its_trials_have_ended_no_best_baseline_is_named(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    run_study(planner, records, FakeHands(1, by_row), Lines())
    records.folder.delete(f"{planner.trials('pa', study.blocks[0])[0].name}.json")
    records.refresh()
    table = block_table(study, planner, study.blocks[0], records.get)
    assert "baseline" not in table.best and table.best["control"] == "pooler"
    assert {each.role for each in table.comparisons} == {"control"}


def test_named_pairs_are_compared_too(tmp_path: Path) -> None:
    blocks = [{"name": "main", "rows": ["pa", "pf"], "seeds": [0, 1], "compare": [["pf", "pa"]]}]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    run_study(planner, records, FakeHands(1, by_row), Lines())
    [first, second] = block_table(study, planner, study.blocks[0], records.get).comparisons
    assert (first.row, first.reference, first.role) == ("pf", "pa", "named")
    assert first.mean == pytest.approx(0.05, abs=0.005) and second.score == "map@r"


def test_a_pair_that_is_compared_in_any_case_is_not_counted_twice(tmp_path: Path) -> None:
    rows = ["pretrained", "pf", "pa", "pooler", "saga"]
    blocks = [{"name": "main", "rows": rows, "seeds": [0, 1], "compare": [["saga", "pf"], ["pf", "pa"]]}]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    run_study(planner, records, FakeHands(1, by_row), Lines())
    table = block_table(study, planner, study.blocks[0], records.get)
    pairs = [(each.row, each.reference, each.role) for each in table.comparisons if each.score == "map@r"]
    assert pairs == [
        ("pf", "pa", "named"), ("pooler", "pf", "baseline"), ("saga", "pf", "baseline"), ("saga", "pooler", "control")
    ]  # fmt: skip


def test_rows_of_other_seeds_are_compared_over_those_that_both_have(tmp_path: Path) -> None:
    """Seeds differ by .1 here and rows by .05: over their own seeds the rows would differ by .15."""

    def outcome(task: Task) -> Record:
        return fake_record(task, (0.5 if task.row == "pa" else 0.55) + 0.1 * task.seed)

    blocks = [{"name": "main", "rows": ["pa", "pf"], "seeds": [0, 1, 2], "compare": [["pf", "pa"]]}]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    run_study(planner, records, FakeHands(1, outcome), Lines())
    [late] = [task for task in planner.plan(records.get).tasks if (task.row, task.seed) == ("pa", 2)]
    records.folder.delete(f"{late.name}.json")
    records.refresh()
    table = block_table(study, planner, study.blocks[0], records.get)
    assert table.line("pf", "home").means["recall@1"] == pytest.approx(0.65)
    assert table.line("pa", "home").means["recall@1"] == pytest.approx(0.55)
    assert table.comparisons[0].mean == pytest.approx(0.05) and table.comparisons[0].interval[0] > 0.04


def test_the_page_shows_tables_choices_and_what_is_open(tmp_path: Path) -> None:
    blocks = [
        {"name": "main", "rows": ["pretrained", "pf", "pooler", "saga"], "seeds": [0, 1]},
        {"name": "later", "rows": ["pf", "pa"], "world": "away"},
    ]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    run_study(planner, records, FakeHands(1, by_row), Lines(), blocks=["main"])
    where, tables = write_page(study, planner, records, "saga-ray study mine.yaml")
    page = Path(where).read_text(encoding="utf-8")
    assert tables in page.replace("\n\n![scores-main](scores-main.png)", "")
    assert page.count("\n| saga | method | 2 | 6") == 1
    assert "| saga | pf (best baseline) | +6.0 [" in page
    assert "`saga-ray study mine.yaml --block main`" in page
    assert "- later: 5 of 8 runs" in page and "later</summary>" not in page  # pf has its trials already
    assert "| saga | as the file says it | 73.5 | 73.5 | 73.5 73.5 73.5 |" in page
    for picture in ("scores-main", "trials-home-paper"):
        assert f"({picture}.png)" in page and (Path(where).parent / f"{picture}.png").stat().st_size > 5000
    assert len(page) < 6000


def test_rows_without_a_run_are_named_in_a_sentence(tmp_path: Path) -> None:
    blocks = [{"name": "main", "rows": ["pf", "pa", "saga"]}]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    run_study(planner, records, FakeHands(1, by_row), Lines())
    for task in planner.plan(records.get).tasks:
        if task.row == "saga":
            records.folder.delete(f"{task.name}.json")
    records.refresh()
    where, tables = write_page(study, planner, records, "saga-ray study mine.yaml")
    assert "\n| pf | baseline | 1 |" in tables and "| saga |" not in Path(where).read_text(encoding="utf-8")
    assert "Not run yet: saga." in tables


def test_a_table_of_worlds_shows_what_there_is_to_win(tmp_path: Path) -> None:
    rows = {
        "pf": {"method": "potential-field", "kind": "baseline"},
        "pooler": {"method": "potential-field+pooler", "kind": "control"},
        "ceiling": {"method": "potential-field+consensus", "set": {"consensus.source": "truth"}, "kind": "ceiling"},
    }
    blocks = [
        {
            "name": "search", "rows": list(rows), "world": ["home", "away"], "split": "validation", "table": "worlds",
            "tuned_on": "defaults", "compare": [("pooler", "pf")],
        }
    ]  # fmt: skip
    study, planner, records = small_study(tmp_path, rows=rows, blocks=blocks)
    recall = {"pf": 0.6, "pooler": 0.7, "ceiling": 0.9}
    hands = FakeHands(1, lambda task: fake_record(task, recall[task.row] - 0.1 * (task.world == "away")))
    plan = run_study(planner, records, hands, Lines())
    assert {task.config.evaluation.split for task in plan.tasks} == {"validation"}
    where, tables = write_page(study, planner, records, "saga-ray study mine.yaml")
    assert "| ceiling | ceiling | 90.0 / 45.0 | 80.0 / 40.0 |" in tables
    differences = [line for line in tables.splitlines() if " minus " in line]
    assert [line.split(" | ")[0] for line in differences] == [
        "| ceiling minus pf",
        "| ceiling minus pooler",
        "| pooler minus pf",
    ]
    assert "| best control | +20.0 [" in differences[1] and "] / +10.0 [" in differences[1]
    assert "| baseline | +10.0 [" in differences[2]
    assert (Path(where).parent / "scores-search.png").stat().st_size > 5000
    assert "every row as the file says it, without trials" in tables


def test_worlds_together_are_students_t_over_their_means(tmp_path: Path) -> None:
    worlds = {"a": {}, "b": {"data.world_seed": 1}, "c": {"data.world_seed": 2}}
    blocks = [{
        "name": "main", "rows": ["pf", "saga"], "world": list(worlds), "seeds": [0, 1], "compare": [["saga", "pf"]],
        "tuned_on": "defaults", "worlds_alike": True,
    }]  # fmt: skip
    study, planner, records = small_study(tmp_path, worlds=worlds, blocks=blocks)
    gains = {"a": 0.02, "b": 0.03, "c": 0.07}
    for task in planner.plan(records.get).tasks:
        records.write(fake_record(task, 0.5 + (gains[task.world] if task.row == "saga" else 0)))
    table = block_table(study, planner, study.blocks[0], records.get)
    recall, map_r = over_worlds(study, table)
    assert (recall.mean, map_r.mean) == pytest.approx((0.04, 0.02))
    # By hand: deviations -.02, -.01, .03, so sd = sqrt(.0014 / 2), and t with 2 degrees of freedom is 4.303.
    half = 4.3027 * np.sqrt(0.0007 / 3)
    assert recall.interval == pytest.approx((0.04 - half, 0.04 + half), rel=1e-3)
    assert recall.p == recall.corrected and 0.1 < recall.p < 0.15
    assert "All worlds together" in write_page(study, planner, records, "x")[1]
    unlike = study.blocks[0].model_copy(update={"worlds_alike": False})
    assert over_worlds(study, block_table(study, planner, unlike, records.get)) == []


def test_a_table_of_worlds_says_what_the_mllm_reads_there(tmp_path: Path) -> None:
    blocks = [{"name": "main", "rows": ["pf"], "world": ["home", "away"], "table": "worlds", "tuned_on": "defaults"}]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    for task in planner.plan(records.get).tasks:
        found = {"before": {"named": 0.31}} if task.world == "away" else None
        records.write(fake_record(task, 0.5).model_copy(update={"diagnosis": found}))
    text = _worlds_table(study, block_table(study, planner, study.blocks[0], records.get))
    assert "| named by the MLLM before training, in percent | validation classes |  | 31 |" in text


def test_an_empty_study_has_a_page_as_well(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)
    where, _ = write_page(study, planner, records, "saga-ray study mine.yaml")
    page = Path(where).read_text(encoding="utf-8")
    assert "- main: 22 of 22 runs" in page and "png" not in page
