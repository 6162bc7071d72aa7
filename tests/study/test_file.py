"""Study files, and the points of their searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_ray.configure import ConfigError
from saga_ray.study.file import kept_by_the_file, load_study
from saga_ray.study.space import Range, draw_points
from tests.study.fakes import STUDY, small_study, write_study

SPACE = {"optim.lr_tower": Range("loguniform", (5e-5, 1e-3)), "data.flip": Range("choice", (True, False))}


def test_a_row_is_base_then_world_then_budget_then_its_own_keys_then_what_was_chosen(tmp_path: Path) -> None:
    study, _, _ = small_study(tmp_path)
    config = study.config(
        "saga", "away", "paper", seed=3, split="validation", values={"loss.weights.grpo": 2.0, "stop": 0.5},
        on_top={"loss.weights.alignment": 0.0},
    )  # fmt: skip
    assert (config.data.num_classes, config.data.world_seed, config.seed) == ((8, 3, 4), 1, 3)
    assert (config.loss.weights.grpo, config.loss.weights.alignment, config.optim.epochs) == (2.0, 0.0, 1.5)
    assert config.evaluation.split == "validation"
    assert study.config("saga", "home", "long", values={"stop": 0.25}).optim.steps == 25


def test_a_budget_says_nothing_to_a_row_that_trains_nothing(tmp_path: Path) -> None:
    study, _, _ = small_study(tmp_path)
    paper, long = (study.config("pretrained", "home", budget) for budget in ("paper", "long"))
    assert paper == long and paper.optim.steps == 0
    assert study.space("pretrained") == {}


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    rows = STUDY["rows"] | {
        "bad": {"method": "sga", "space": {"optim.lr_towr": {"uniform": [0, 1]}, "data.shift": {"uniform": [0, 1]}}}
    }
    path = write_study(
        tmp_path,
        rows=rows,
        budgets={"paper": {"optim.epoch": 3}},
        worlds={"home": {"data.confound": 2}},
        tuning={"stop": [2.0], "trails": 3},
        blocks=[{"name": "main", "rows": ["pf", "sga"], "budget": "papr", "tuned_on": {"world": "hme"}, "seed": [1]}],
    )
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    lines = str(caught.value).splitlines()
    for expected in (
        "rows.bad: method 'sga' is unknown; did you mean 'saga'?",
        "rows.bad.space: unknown key 'optim.lr_towr'; did you mean 'optim.lr_tower'?",
        "rows.bad.space: data.shift cannot be searched",
        "budgets.paper: unknown key 'optim.epoch'; did you mean 'optim.epochs'?",
        "worlds.home: data.confound: 2 is not accepted",
        "unknown key 'tuning.trails'; did you mean 'trials'?",
        "unknown key 'blocks.main.seed'; did you mean 'seeds'?",
        "tuning.stop: 2.0 is no share",
        "blocks.main: row 'sga' is unknown",
        "blocks.main: budget 'papr' is unknown; did you mean 'paper'?",
        "blocks.main: world 'hme' is unknown; did you mean 'home'?",
    ):
        assert sum(expected in line for line in lines) == 1, (expected, lines)
    assert len(lines) == 11, lines


def test_what_is_no_list_or_place_is_told_with_what_to_write(tmp_path: Path) -> None:
    blocks = [
        {"name": "one", "rows": ["pf"], "tuned_on": {"world": "home", "budgit": 3}},
        {"name": "two", "rows": ["pf"], "seeds": 0, "tuned_on": "default"},
    ]
    with pytest.raises(ConfigError) as caught:
        load_study(write_study(tmp_path, blocks=blocks))
    lines = [line.partition("mine.yaml: ")[2] for line in str(caught.value).splitlines()]
    assert lines == [
        "unknown key 'blocks.one.tuned_on.budgit'; did you mean 'budget'?",
        "blocks.two.seeds: 0 is not accepted: write a list, such as [0, 1]",
        "blocks.two.tuned_on: 'default' is not accepted: write defaults, or {world: NAME, budget: NAME}",
    ]


def test_one_mistake_in_a_block_is_one_sentence_and_seeds_belong_to_blocks(tmp_path: Path) -> None:
    blocks = [{"name": "one", "rows": ["pf", "saga"], "compare": ["saga", "pf"]}]
    with pytest.raises(ConfigError) as caught:
        load_study(write_study(tmp_path, blocks=blocks))
    assert [line.partition("mine.yaml: ")[2] for line in str(caught.value).splitlines()] == [
        "blocks.one.compare.0: 'saga' is not accepted: write a list, such as [saga, infonce]",
        "blocks.one.compare.1: 'pf' is not accepted: write a list, such as [saga, infonce]",
    ]
    for overrides in ({"seed": 3}, {"evaluation.split": "validation"}):
        with pytest.raises(ConfigError, match=r"base: seed and evaluation\.split are the blocks'"):
            load_study(write_study(tmp_path), overrides=overrides)


def test_keys_that_the_file_sets_itself_win_and_that_is_said(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    study = load_study(path, overrides={"optim.steps": 5, "data.world_seed": 3, "data.flip": True})
    assert kept_by_the_file(study, {"optim.steps": 5, "data.world_seed": 3, "data.flip": True}) == [
        "--set optim.steps: budgets.paper, budgets.long of the file set it themselves, and that counts",
        "--set data.world_seed: worlds.away of the file sets it itself, and that counts",
    ]


def test_combinations_and_ends_of_ranges_are_checked_too(tmp_path: Path) -> None:
    rows = {"pf": {"method": "potential-field", "set": {"loss.weights.alignment": 1.0, "encoder.pooler": "attention"}}}
    rows["pf"]["space"] = {"encoder.pooler": {"choice": ["attention", "mean"]}}
    blocks = [{"name": "main", "rows": ["pf"]}]
    with pytest.raises(ConfigError, match=r"rows\.pf: loss\.weights\.alignment: 1\.0 needs encoder\.pooler=attention"):
        load_study(write_study(tmp_path, rows=rows, blocks=blocks))


@pytest.mark.parametrize("changes", [{"rows": {}}, {"blocks": "main"}, {"rows": {"pf": {"methd": "saga"}}}])
def test_files_without_the_needed_parts_give_sentences(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: "):
        load_study(write_study(tmp_path, **changes))


def test_points_begin_with_the_defaults_and_longer_searches_begin_alike() -> None:
    points = draw_points(SPACE, 8, seed=0)
    assert points[0] == {} and len(points) == 8
    assert points[:5] == draw_points(SPACE, 5, seed=0) != draw_points(SPACE, 5, seed=1)
    assert all(5e-5 <= point["optim.lr_tower"] <= 1e-3 for point in points[1:])
    assert {point["data.flip"] for point in points[1:]} == {True, False}
    assert draw_points({}, 8, seed=0) == [{}]
    wider = SPACE | {"loss.weights.grpo": Range("loguniform", (0.3, 10))}
    assert len(draw_points(wider, 8, seed=0)[3]) == 3


def test_points_cover_the_range_better_than_chance() -> None:
    rates = sorted(point["optim.lr_tower"] for point in draw_points(SPACE, 9, seed=0)[1:])
    assert rates[1] < 2.3e-4 < rates[-2]  # on both sides of the geometric middle


@pytest.mark.parametrize("name", ["demo_study", "demo_worlds"])
def test_shipped_studies_load(name: str) -> None:
    study = load_study(Path(__file__).parents[2] / "sweeps" / f"{name}.yaml")
    assert {"pretrained", "baseline", "control", "ceiling"} <= {row.kind for row in study.rows.values()}
    # What decides among worlds, and what tunes, never sees a test class.
    assert all(block.split == "validation" for block in study.blocks) == (name == "demo_worlds")
