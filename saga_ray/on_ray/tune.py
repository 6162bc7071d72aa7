"""Sweeps: Ray Tune asks Optuna for values, every trial is a run judged on validation classes, the winner meets the test."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.search.optuna import OptunaSearch

from saga_ray.config import RunConfig
from saga_ray.data import load_dataset
from saga_ray.on_ray.bulletin import bulletin, pinned_warnings
from saga_ray.on_ray.cluster import Cluster, connect
from saga_ray.on_ray.resources import max_concurrent, trainer_threads
from saga_ray.on_ray.serve import scorer_service
from saga_ray.on_ray.sweep import SweepFile
from saga_ray.on_ray.sweep_report import write_report
from saga_ray.on_ray.train import BulletinProgress, Job, check_inputs, ray_storage, run_job, train_group
from saga_ray.on_ray.trials import Trial, TrialStore, best_trial, causes, is_settled
from saga_ray.storage import Storage
from saga_ray.study.space import distributions
from saga_ray.train.errors import NonFiniteError
from saga_ray.train.loop import TrainResult
from saga_ray.train.progress import Progress, Silent
from saga_ray.train.run_folder import RunFolder


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    uri: str
    """Folder with trials.csv, best.yaml and the plot."""
    trials: tuple[Trial, ...]
    best: Trial
    test: TrainResult
    """The winner's row on the test classes, the only one of the sweep."""


def run_sweep(
    sweep: SweepFile, runs_uri: str | Path, progress: Progress | None = None, cluster: Cluster | None = None
) -> SweepResult:
    """Search, or go on with a search; finished trials are not run again, failed and interrupted ones are.

    All trials ask one scorer service. A trial with one worker trains in its own process; with more it starts a group.

    Raises:
        ValueError: sentences about configuration, data, storage or resources, and if no trial has a score.
    """
    progress = progress or Silent()
    runs = Storage.open(runs_uri)
    store = TrialStore.of(sweep, runs)
    missing = sweep.trials - sum(trial.draws for trial in store.all() if is_settled(trial))
    if missing > 0:
        runs.check_writable()
        check_inputs([_widest(sweep)], runs, progress)
        with contextlib.ExitStack() as stack:
            if cluster is None:
                progress.stage("starting Ray")
                cluster = stack.enter_context(connect([_widest(sweep)]))
            _search(sweep, missing, runs, store, progress, cluster)
    trials = store.all()
    best = best_trial(trials, sweep.mode)
    if best is None:
        raise ValueError(f"sweep {sweep.name}: none of {len(trials)} trials has a score: {causes(trials)}")
    write_report(sweep, trials, best, store.folder)
    progress.stage(f"evaluating the best trial on the test classes ({sweep.metric} {best.score:.4f} on validation)")
    return SweepResult(store.folder.uri, tuple(trials), best, evaluate_winner(sweep, best, runs))


def _widest(sweep: SweepFile) -> RunConfig:
    """A configuration that needs the scorer if any trial does."""
    corners = [sweep.config({})]
    for key, span in sweep.space.items():
        corners += [sweep.config({key: value}) for value in span.values]
    return next((config for config in corners if config.asks_the_mllm), corners[0])


def _search(
    sweep: SweepFile, missing: int, runs: Storage, store: TrialStore, progress: Progress, cluster: Cluster
) -> None:
    known = store.all()
    settled = [trial for trial in known if is_settled(trial)]
    again = [dict(trial.values) for trial in known if not is_settled(trial)][:missing]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = OptunaSearch(
        space=distributions(sweep.space),
        metric=sweep.metric,
        mode=sweep.mode,
        # A search that goes on draws new random points, not those of its beginning.
        seed=sweep.seed + 1000 * len(known),
        points_to_evaluate=again or None,
    )
    for trial in settled:
        search.add_evaluated_point(dict(trial.values), trial.score, error=trial.score is None)
    config = _widest(sweep)
    num_cpus, num_gpus = cluster.total()
    # A cluster of our own may announce more CPUs than the machine has cores.
    concurrent = min(missing, max_concurrent(config, cluster.num_cores or num_cpus, num_gpus))
    if settled or again:
        progress.stage(f"{len(settled)} trials are known, {len(again)} of {missing} others were interrupted or failed")

    def on_note(kind: str, note: Any) -> None:
        if kind == "stage":
            progress.stage(note)
        elif kind == "part" and concurrent == 1:
            progress.part(*note)
        elif kind == "step" and concurrent == 1:
            progress.step(*note)

    started = {trial.name for trial in known}
    with bulletin(on_note) as board, scorer_service([config], cluster) as app, ray_storage(runs, cluster) as path:
        told = _Told(sweep, runs.uri, app, board, os.getcwd(), cluster, concurrent)
        tuner = tune.Tuner(
            _with_resources(_trainable(told), config, cluster),
            tune_config=tune.TuneConfig(
                metric=sweep.metric,
                mode=sweep.mode,
                search_alg=search,
                num_samples=missing,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name=f"saga-ray-{uuid.uuid4().hex[:12]}", storage_path=path, verbose=0),
        )
        with contextlib.redirect_stdout(sys.stderr):  # Tune talks about itself, and standard output is for results
            grid = tuner.fit()
        interrupted = len(grid) < missing or any(r.metrics is None and r.error is None for r in grid)
    _record_broken(store, grid, started)
    if interrupted and not any(result.error for result in grid):
        raise KeyboardInterrupt  # Tune ends quietly when it is interrupted


def _record_broken(store: TrialStore, grid: tune.ResultGrid, started: set[str]) -> None:
    """Trials whose process died say nothing themselves."""
    errors = [str(result.error).strip().splitlines()[-1] for result in grid if result.error is not None]
    for trial in store.all():
        if trial.status == "started" and errors:
            store.write(replace(trial, status="failed", cause=errors[-1][:300]))


@dataclass(frozen=True)
class _Told:
    """What every trial is told."""

    sweep: SweepFile
    runs_uri: str
    app: str | None
    board: ActorHandle
    folder: str
    cluster: Cluster
    concurrent: int


def _with_resources(trainable: Callable[[Mapping[str, Any]], None], config: RunConfig, cluster: Cluster) -> Any:
    r = config.resources
    if r.num_workers > 1:  # it only starts a group of workers; a whole CPU for that would lock two cores up
        return tune.with_resources(trainable, {"CPU": 0.001})
    selector = cluster.placement("training")
    bundle = {"CPU": r.cpus_per_worker, **({"GPU": r.gpus_per_worker} if r.gpus_per_worker else {})}
    if selector:
        return tune.with_resources(trainable, tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector]))
    return tune.with_resources(trainable, bundle)


def _trainable(told: _Told) -> Callable[[Mapping[str, Any]], None]:
    def trial(values: Mapping[str, Any]) -> None:
        score = _run_trial(dict(values), told)
        tune.report({told.sweep.metric: score})

    return trial


def _run_trial(values: dict[str, Any], told: _Told) -> float:
    """Run one point of the search, once: an equal point waits for it and takes its score.

    Raises:
        ValueError: if the trial has no score. Tune then counts it as failed, where a NaN would leave it open for ever.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    store = TrialStore.of(told.sweep, Storage.open(told.runs_uri))
    name = told.sweep.trial_name(values)
    while not ray.get(told.board.claim.remote(name)):
        time.sleep(0.5)
    try:
        known = store.read(name)
        if known is not None and is_settled(known):
            trial = replace(known, draws=known.draws + 1)
        else:
            draws = known.draws if known is not None else 1
            trial = Trial(name, values, "started", draws=draws)
            store.write(trial)
            trial = _judged(trial, told)
        store.write(trial)
    finally:
        ray.get(told.board.release.remote(name))
    shown = ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )
    became = f"{told.sweep.metric} {trial.score:.4f}" if trial.score is not None else f"{trial.status} ({trial.cause})"
    ray.get(told.board.pin.remote("stage", f"trial {shown}: {became}"))
    if trial.score is None:
        raise ValueError(trial.cause)
    return trial.score


def _judged(trial: Trial, told: _Told) -> Trial:
    began = time.monotonic()
    try:
        scores = _train(Job(told.sweep.config(trial.values), trial.name), told).scores
    except NonFiniteError as error:
        return replace(trial, status="not a number", cause=str(error), seconds=time.monotonic() - began)
    except Exception as error:  # whatever it was, it is this trial's and not the sweep's
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return replace(trial, status="failed", cause=cause, seconds=time.monotonic() - began)
    score, seconds = scores[told.sweep.metric], time.monotonic() - began
    if not math.isfinite(score):
        cause = f"{told.sweep.metric} is {score}"
        return replace(trial, status="not a number", cause=cause, seconds=seconds)
    return replace(trial, status="finished", score=float(score), seconds=seconds)


def _train(job: Job, told: _Told) -> TrainResult:
    """In this process with one worker, as a group of workers with more; on the sweep's own scorer service either way."""
    runs = Storage.open(told.runs_uri)
    progress = BulletinProgress(told.board)
    if job.config.resources.num_workers > 1:
        return train_group([job], runs, progress, told.cluster, told.app)[job.name]
    import torch

    from saga_ray.train.context import LocalContext

    if os.path.isdir(told.folder):
        os.chdir(told.folder)
    cores = None if told.cluster.num_cores is None else max(1, told.cluster.num_cores // told.concurrent)
    torch.set_num_threads(trainer_threads(job.config, cores))
    with pinned_warnings(told.board):
        result = run_job(
            job,
            load_dataset(job.config),
            runs,
            LocalContext(),
            app=told.app,
            num_cores=cores,
            data_group=told.cluster.placement("data"),
            progress=progress,
        )
    assert result is not None
    return result


def evaluate_winner(sweep: SweepFile, best: Trial, runs: Storage) -> TrainResult:
    """Evaluate the winner's trained encoder on the test classes; done once, typed again it is read."""
    from saga_ray.encoder.export import load_encoder
    from saga_ray.train.context import LocalContext
    from saga_ray.train.evaluate import evaluate
    from saga_ray.train.loop import finished_result

    config = sweep.config(best.values, split="test")
    run = RunFolder(runs, f"{best.name}-test")
    finished = finished_result(run, config)
    if finished is not None:
        return finished
    trained = RunFolder(runs, best.name).read_result()
    context = LocalContext()
    embedder = load_encoder(runs.child(best.name).uri)
    run.begin(config)
    found = evaluate(
        embedder.encoder.to(context.device),
        config,
        load_dataset(config),
        context,
        run,
        pretraining=trained["pretraining"],
        seconds=trained["seconds"],
    )
    assert found is not None
    result, stored = found
    row = result.model_dump(mode="json") | {"num_steps": trained["num_steps"], "stored": stored}
    run.write_result(row)
    return TrainResult(run.name, run.storage.uri, trained["num_steps"], result.scores, row, stored)
