"""Sweeps, whole: search, resume, failures, winner."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from saga_ray.configure import resolve, with_override
from saga_ray.on_ray.sweep import Range, SweepFile
from saga_ray.on_ray.sweep_report import best_yaml, trials_csv, write_report
from saga_ray.on_ray.trials import Trial, TrialStore, best_trial, causes, is_settled
from saga_ray.storage import Storage
from saga_ray.train.run_folder import RunFolder
from tests.on_ray.conftest import SMALL

SPACE = {"loss.weights.grpo": Range("loguniform", (0.1, 10.0)), "grpo.group_size": Range("choice", (3, 4))}
TRIALS = [
    Trial("s-a", {"loss.weights.grpo": 0.5, "grpo.group_size": 3}, "finished", 0.5),
    Trial("s-b", {"loss.weights.grpo": 5.0, "grpo.group_size": 4}, "finished", 0.75, draws=2),
    Trial("s-c", {"loss.weights.grpo": 9.0, "grpo.group_size": 4}, "not a number", cause="loss/total is nan at step 3"),
    Trial("s-d", {"loss.weights.grpo": 0.2, "grpo.group_size": 3}, "failed", cause="=1+1 out of memory"),
    Trial("s-e", {"loss.weights.grpo": 0.3, "grpo.group_size": 3}, "started"),
]


def _sweep(**values: object) -> SweepFile:
    return SweepFile(**({"name": "s", "space": SPACE, "base": {}} | values))


def test_trials_are_remembered_and_only_settled_ones_are_not_run_again(tmp_path: Path) -> None:
    store = TrialStore.of(_sweep(), Storage.open(tmp_path))
    for trial in TRIALS:
        store.write(trial)
    assert store.all() == TRIALS
    assert [is_settled(trial) for trial in TRIALS] == [True, True, True, False, False]
    (tmp_path / _sweep().folder / "trials" / "s-a.json").write_text("{half")
    assert store.all() == TRIALS[1:]


def test_the_best_trial_has_a_score_and_causes_are_counted() -> None:
    assert best_trial(TRIALS, "max").name == "s-b" and best_trial(TRIALS, "min").name == "s-a"
    assert best_trial(TRIALS[2:], "max") is None
    assert "not a number: loss/total is nan at step 3 (1 of 5)" in causes(TRIALS)


def test_a_report_holds_every_trial_and_a_config_that_trains_the_best(tmp_path: Path) -> None:
    sweep = _sweep(base={"optim.steps": 7})
    write_report(sweep, TRIALS, TRIALS[1], Storage.open(tmp_path))
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["run"] for row in rows] == ["s-b", "s-a", "s-c", "s-d", "s-e"]
    assert rows[3]["cause"] == "'=1+1 out of memory"
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 5
    told = yaml.safe_load((tmp_path / "best.yaml").read_text())
    config = resolve(told["dataset"], file_values=told)
    assert (config.loss.weights.grpo, config.grpo.group_size, config.optim.steps) == (5.0, 4, 7)
    assert (tmp_path / "trials.png").stat().st_size > 5000 and "<svg" in (tmp_path / "trials.svg").read_text()


def test_one_trial_alone_can_be_reported(tmp_path: Path) -> None:
    write_report(_sweep(), TRIALS[:1], TRIALS[0], Storage.open(tmp_path))
    assert "0.5000 on the validation classes" in best_yaml(_sweep(), TRIALS[0])
    assert len(trials_csv(_sweep(), TRIALS[:1]).splitlines()) == 2


@pytest.mark.slow
def test_a_sweep_is_searched_resumed_and_its_winner_alone_meets_the_test(
    ray_cluster: None, mllm_folder: Path, tmp_path: Path
) -> None:
    from ray import serve

    from saga_ray.leaderboard.store import ResultStore
    from saga_ray.on_ray.tune import run_sweep

    # One trial at a time: its process is used again, and starting processes is what takes the time here.
    base = {**SMALL, "mllm.path": str(mllm_folder), "optim.steps": 2, "resources.cpus_per_worker": 3}
    sweep = _sweep(base=base, trials=3)
    first = run_sweep(sweep, tmp_path)
    assert len(first.trials) == 3 and all(trial.status == "finished" for trial in first.trials)
    assert not serve.status().applications

    def rows(split: str) -> list[str]:
        return sorted(row.run for row in ResultStore(Storage.open(tmp_path)).load() if row.split == split)

    assert rows("validation") == sorted(trial.name for trial in first.trials)
    assert rows("test") == [f"{first.best.name}-test"]
    processes = {
        json.loads(line)["scorer/process"]
        for trial in first.trials
        for line in (tmp_path / trial.name / "metrics.jsonl").read_text().splitlines()
    }
    assert len(processes) == 1, "all trials share one scorer"
    # Typed again: nothing is run; the winner's row is the same.
    again = run_sweep(sweep, tmp_path)
    assert again.trials == first.trials and again.test.was_finished
    # A trial that was cut off goes on, and a longer search only adds to what is there.
    store = TrialStore.of(sweep, Storage.open(tmp_path))
    cut = next(trial for trial in first.trials if trial.name != first.best.name)
    store.write(Trial(cut.name, cut.values, "started"))
    (tmp_path / cut.name / "result.json").unlink()
    longer = run_sweep(_sweep(base=base, trials=4), tmp_path)
    assert len(longer.trials) == 4 and {trial.name for trial in first.trials} < {trial.name for trial in longer.trials}
    untouched = [t for t in first.trials if t.name != cut.name]
    assert all(trial in longer.trials for trial in untouched)
    assert next(t for t in longer.trials if t.name == cut.name).score == cut.score


@pytest.mark.slow
def test_a_sweep_without_any_score_says_why(ray_cluster: None, mllm_folder: Path, tmp_path: Path) -> None:
    from saga_ray.on_ray.tune import run_sweep

    # A learning rate at which the weights overflow: the loss stops being a number.
    base = {**SMALL, "mllm.path": str(mllm_folder), "optim.lr_tower": 1e30, "optim.warmup_share": 0.0}
    base |= {"resources.cpus_per_worker": 3}
    base |= {"loss.weights.grpo": 0.0, "loss.weights.alignment": 0.0}
    sweep = _sweep(space={"optim.weight_decay": Range("uniform", (0.0, 0.1))}, base=base, trials=2)
    with pytest.raises(ValueError, match=re.escape("sweep s: none of 2 trials has a score: not a number")):
        run_sweep(sweep, tmp_path)
    assert not list((tmp_path / "results").glob("*.json")) if (tmp_path / "results").exists() else True


@pytest.mark.slow
def test_trials_that_break_stand_beside_good_ones_and_only_failed_ones_are_run_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    from saga_ray.on_ray.tune import run_sweep

    # Without the MLLM, for speed. At the largest rate the weights overflow; the folder of one trial belongs to another run.
    base = {**SMALL, "optim.steps": 2, "optim.warmup_share": 0.0, "resources.cpus_per_worker": 3}
    space = {"optim.lr_tower": Range("choice", (1e-4, 1e-5, 1e30))}
    sweep = _sweep(method="potential-field", space=space, base=base, trials=8)
    good, taken = {"optim.lr_tower": 1e-4}, {"optim.lr_tower": 1e-5}
    folder = RunFolder(Storage.open(tmp_path), sweep.trial_name(taken))
    folder.begin(with_override(sweep.config(taken), "seed", 5))
    first = run_sweep(sweep, tmp_path)
    status = {trial.values["optim.lr_tower"]: trial for trial in first.trials}
    assert {rate: trial.status for rate, trial in status.items()} == {
        1e-4: "finished",
        1e-5: "failed",
        1e30: "not a number",
    }
    assert sum(trial.draws for trial in first.trials if trial.status != "failed") <= 8
    assert first.best.values == good and "holds a run with another configuration" in status[1e-5].cause
    assert " is nan at step " in status[1e30].cause or " is inf at step " in status[1e30].cause
    # Typed again, with the folder out of the way: what failed is run, what was settled is not.
    (tmp_path / sweep.trial_name(taken) / "config.yaml").unlink()
    steps = (tmp_path / sweep.trial_name(good) / "metrics.jsonl").stat().st_mtime_ns
    again = {trial.values["optim.lr_tower"]: trial for trial in run_sweep(sweep, tmp_path).trials}
    assert again[1e-5].status == "finished" and again[1e30].status == "not a number"
    assert again[1e30].seconds == status[1e30].seconds
    assert (tmp_path / sweep.trial_name(good) / "metrics.jsonl").stat().st_mtime_ns == steps
    assert trials_csv(sweep, list(again.values())).count("finished") == 2
