from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from saga_ray.data.demo import world
from saga_ray.mllm.demo import make, talking, tower
from saga_ray.mllm.demo.folder import save_folder
from saga_ray.mllm.demo.training import StagePlan, run_stage

TINY = {"scale": 0.0005, "batch_scale": 0.1}


def test_the_recipe_runs_end_to_end_and_its_folder_loads(tmp_path: Path) -> None:
    learner = make.make(tmp_path / "work", 0, list(make.PLANS), **TINY)
    save_folder(learner.model, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    AutoProcessor.from_pretrained(tmp_path / "out")
    for (name, ours), theirs in zip(learner.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("stage", ["tower", "practice"])
def test_an_interrupted_stage_ends_in_the_same_weights(tmp_path: Path, stage: str) -> None:
    plan = StagePlan(stage, num_steps=4, lr=1e-3, every_steps=1)

    def run(folder, stop_step=None):
        learner = talking.Learner(0)
        groups, loss = make.stage_parts(stage, learner, 8, False)
        run_stage(plan, learner, groups, loss, folder, 0, stop_step)
        return learner

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_step=2)
    resumed = run(tmp_path / "parts")
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    whole_file, parts_file = (load_file(tmp_path / part / f"{stage}.safetensors") for part in ("whole", "parts"))
    assert all(torch.equal(whole_file[name], parts_file[name]) for name in whole_file)


def test_a_checkpoint_of_another_plan_is_refused_with_both_plans(tmp_path: Path) -> None:
    make.make(tmp_path, 0, ["practice"], **TINY)
    with pytest.raises(ValueError, match=r"practice.safetensors: was begun with 1 steps .* now 2 "):
        make.make(tmp_path, 0, ["practice"], scale=0.005, batch_scale=0.1)


def test_pairs_before_its_parents_says_which_stage_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tower.safetensors: missing; the stage `tower` comes before `pairs`"):
        make.make(tmp_path, 0, ["pairs"], **TINY)


def test_a_gpu_that_is_not_there_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(make.main, ["--work", str(tmp_path / "work"), "--device", "cuda"])
    assert result.exit_code == 2 and "--device cuda: torch sees no GPU here" in result.output
    assert not (tmp_path / "work").exists()


def test_polishing_leaves_the_tower_and_needs_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.safetensors: missing; the stage `pairs` comes before `polish`"):
        make.make(tmp_path / "alone", 0, ["polish"], **TINY)
    before = make.make(tmp_path, 0, ["tower", "practice", "pairs"], **TINY)
    after = make.make(tmp_path, 0, ["polish"], **TINY)
    changed = {
        name
        for (name, one), other in zip(before.model.named_parameters(), after.model.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert changed and all(name.startswith("model.language_model.") for name in changed), changed


def test_training_never_draws_a_bird_of_the_worlds() -> None:
    rng = np.random.default_rng(0)
    assert world.is_mllm_pool(tower.neighbour_vectors(rng, 64)).all()
    for vectors in talking.pair_vectors(rng, 64):
        assert world.is_mllm_pool(vectors).all()


def test_captions_of_a_group_differ_in_one_or_two_attributes_from_the_first() -> None:
    vectors = tower.neighbour_vectors(np.random.default_rng(0), 64).reshape(16, tower.NUM_NEIGHBOURS, 10)
    distance = (vectors[:, 1:] != vectors[:, :1]).sum(-1)
    assert set(np.unique(distance)) == {1, 2}


def test_corruption_changes_one_to_four_words_of_the_asked_share() -> None:
    rng = np.random.default_rng(0)
    first, second = talking.pair_vectors(rng, 500)
    changes = (talking.corrupted(rng, first, second, 0.4) != np.concatenate([first, second], 1)).sum(1)
    assert set(np.unique(changes)) == {0, 1, 2, 3, 4}
    assert 0.3 < (changes > 0).mean() < 0.5
