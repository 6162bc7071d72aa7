"""Sweep files."""

from pathlib import Path

import pytest

from saga_ray.configure import ConfigError
from saga_ray.on_ray.sweep import Range, load_sweep

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
