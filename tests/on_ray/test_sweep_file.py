"""Sweep files."""

import json
from pathlib import Path

import pytest
import yaml

from saga_ray.config.keys import model_keys
from saga_ray.configure import ConfigError, resolve, with_override
from saga_ray.data import load_dataset
from saga_ray.on_ray.sweep import Range, load_sweep
from saga_ray.on_ray.sweep_report import best_yaml
from saga_ray.on_ray.trials import Trial

ROOT = Path(__file__).parents[2]


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["weights", "demo"])
def test_shipped_sweeps_load_and_choose_on_validation_classes(name: str) -> None:
    sweep = load_sweep(ROOT / "sweeps" / f"{name}.yaml")
    assert set(sweep.space) == {"loss.weights.grpo", "loss.weights.alignment", "grpo.group_size"}
    assert sweep.config({"grpo.group_size": 4}).evaluation.split == "validation"
    assert sweep.config({"grpo.group_size": 4}, split="test").evaluation.split == "test"


def test_all_mistakes_are_told_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "datset: demo\nmetric: recal@1\ntrials: 0\nbase: {optim.lr_towr: 1}\nspace:\n"
        "  loss.weights.grop: {loguniform: [0.1, 10]}\n  grpo.temperature: {loguniform: [0, 8]}\n"
        "  resources.num_workers: {choice: [1]}\n  loss: {weights: {metric: {unifrm: [0, 2]}}}\n"
        "  grpo.top_p: {uniform: [1, 0.5]}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    lines = str(caught.value).splitlines()
    for expected in (
        "unknown key 'datset'; did you mean 'dataset'?",
        "metric 'recal@1' is unknown; did you mean 'recall@1'?",
        "trials: 0 is not accepted",
        "base: unknown key 'optim.lr_towr'; did you mean 'optim.lr_tower'?",
        "unknown key 'loss.weights.grop'; did you mean 'loss.weights.grpo'?",
        "loguniform: [0, 8] begins at 0",
        "resources.num_workers cannot be searched",
        "'unifrm' is not a kind of range; did you mean 'uniform'?",
        "uniform: [1, 0.5] is not two numbers, the smaller one first",
    ):
        assert sum(expected in line for line in lines) == 1, expected
    assert len(lines) == 9


def test_ends_of_a_range_must_be_values_that_a_run_accepts(tmp_path: Path) -> None:
    path = _write(tmp_path, "space:\n  grpo.group_size: {choice: [1, 8]}\n  loss.weights.grpo: {uniform: [-1, 2]}\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert [line.split("space: ")[1].split(" is not")[0] for line in str(caught.value).splitlines()] == [
        "grpo.group_size: 1",
        "loss.weights.grpo: -1",
    ]


def test_nested_and_dotted_spaces_mean_the_same(tmp_path: Path) -> None:
    dotted = load_sweep(_write(tmp_path, "space: {loss.weights.grpo: {loguniform: [1e-1, 10]}}"))
    nested = load_sweep(_write(tmp_path, "space: {loss: {weights: {grpo: {loguniform: [0.1, 10]}}}}"))
    assert dotted.space == nested.space == {"loss.weights.grpo": Range("loguniform", (0.1, 10))}
    assert dotted.folder == nested.folder


def test_a_longer_search_keeps_its_folder_and_another_search_gets_its_own(tmp_path: Path) -> None:
    path = _write(tmp_path, "space: {grpo.group_size: {choice: [4, 8]}}")
    assert load_sweep(path, trials=3).folder == load_sweep(path, trials=30).folder
    others = [load_sweep(path, steps=7), load_sweep(path, overrides={"seed": 1}), load_sweep(path)]
    assert len({other.folder for other in others}) == 3
    assert others[0].config({}).optim.steps == 7


SPACE = "space: {grpo.group_size: {choice: [4, 8]}}\n"


def test_a_key_that_is_searched_cannot_be_fixed_as_well(tmp_path: Path) -> None:
    sentence = r"space: grpo\.group_size is searched, but base or --set fixes it at 4; take it out of one of the two$"
    with pytest.raises(ConfigError, match=sentence):
        load_sweep(_write(tmp_path, SPACE), overrides={"grpo.group_size": 4})
    with pytest.raises(ConfigError, match=sentence):
        load_sweep(_write(tmp_path, SPACE + "base: {grpo.group_size: 4}\n"))
    steps = _write(tmp_path, "space: {optim.steps: {int: [5, 50]}}\n")
    with pytest.raises(ConfigError, match=r"optim\.steps is searched, but base or --set fixes it at 7"):
        load_sweep(steps, steps=7)


def test_data_set_recipe_and_method_may_be_typed_as_assignments(tmp_path: Path) -> None:
    path = _write(tmp_path, SPACE + "method: infonce\n")
    sweep = load_sweep(
        path, overrides={"dataset": "inat-aves", "recipe": "demo", "method": "potential-field", "data.root": "x"}
    )
    assert (sweep.dataset, sweep.recipe, sweep.method) == ("inat-aves", "demo", "potential-field")
    assert dict(sweep.base) == {"data.root": "x"}
    config = sweep.config({})
    assert (config.dataset, config.recipe, config.method) == ("inat-aves", "demo", "potential-field")
    assert (
        yaml.safe_load(best_yaml(sweep, Trial("t", {"grpo.group_size": 4}, "finished", 0.5)))["dataset"] == "inat-aves"
    )
    with pytest.raises(ConfigError, match=r"method 'sga' is unknown; did you mean 'saga'"):
        load_sweep(path, overrides={"method": "sga"})
    with pytest.raises(ConfigError, match=r"^--set dataset=cub: another option says cars; give only one of the two"):
        load_sweep(path, dataset="cars", overrides={"dataset": "cub"})
    with pytest.raises(ConfigError, match="base: method stands at the head of the file"):
        load_sweep(_write(tmp_path, SPACE + "base: {method: saga}\n"))


def test_what_is_typed_stands_above_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, SPACE + "steps: 5\n")
    assert load_sweep(path).config({}).optim.steps == 5
    assert load_sweep(path, overrides={"optim.steps": 9}).config({}).optim.steps == 9
    with pytest.raises(ConfigError, match=r"--set optim\.steps=9: another option says 8"):
        load_sweep(path, steps=8, overrides={"optim.steps": 9})


def test_what_changes_the_data_is_not_searched(tmp_path: Path) -> None:
    keys = ["root", "image_size", "decode", "validation_share", "world_seed", "confound", "home", "gap", "shift", "tied", "neighbour_distance",
            "num_classes", "num_images"]  # fmt: skip
    for key in keys:
        with pytest.raises(ConfigError, match=rf"data\.{key} cannot be searched: it changes the data") as caught:
            load_sweep(_write(tmp_path, f"space: {{data.{key}: {{choice: [1, 2]}}}}\n"))
        assert "\n" not in str(caught.value)


def test_a_key_of_the_data_is_searched_only_if_the_fingerprint_does_not_know_it(tmp_path: Path) -> None:
    small = {"data.num_classes": [8, 4, 4], "data.tied": 0, "data.num_images": [2, 2, 2], "data.classes_per_batch": 8}
    config = resolve("demo", overrides=small)
    known = load_dataset(config).fingerprint
    changed = {
        "data.world_seed": 1, "data.confound": 0.1, "data.home": "habitat", "data.gap": "filter", "data.shift": 0.1,
        "data.tied": 1,
        "data.neighbour_distance": 5, "data.num_classes": [9, 4, 4], "data.num_images": [3, 2, 2],
        "data.verify_counts": False, "data.classes_per_batch": 16, "data.images_per_class": 2, "data.num_shards": 2,
        "data.pairs_per_batch": 4, "data.hard_share": 0.1, "data.flip": False, "data.shift_pixels": 0.3,
        "data.max_broken_share": 0.5, "data.hard_from": "taxonomy", "data.mining_images": 1, "data.crop_area": 0.5,
    }  # fmt: skip
    of_folders = {
        "data.root",
        "data.validation_share",
        "data.image_size",
        "data.decode",
        "data.taxonomy",
        "data.taxonomy_digest",
    }
    assert {key for key in model_keys() if key.startswith("data.")} == {*changed, *of_folders}
    for key, value in changed.items():
        path = _write(tmp_path, f"space: {{{key}: {{choice: [{json.dumps(value)}]}}}}\n")
        if load_dataset(with_override(config, key, value)).fingerprint == known:
            assert key in load_sweep(path).space
        else:
            with pytest.raises(ConfigError, match="cannot be searched: it changes the data"):
                load_sweep(path)
