"""Runs on Ray Train: one group of workers trains all of a command's runs, one after another."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from saga_ray.config import RunConfig
from saga_ray.configure import from_yaml, to_yaml
from saga_ray.data import load_dataset
from saga_ray.errors import is_ours
from saga_ray.on_ray.bulletin import bulletin, pinned_warnings
from saga_ray.on_ray.cluster import Cluster, connect
from saga_ray.on_ray.data import Decoding, ray_batches
from saga_ray.on_ray.resources import decoding_tasks, trainer_threads
from saga_ray.storage import Storage
from saga_ray.train.errors import NonFiniteError
from saga_ray.train.evaluation_images import check_evaluation_images
from saga_ray.train.loop import TrainResult, finished_result
from saga_ray.train.progress import Progress, Silent
from saga_ray.train.run_folder import RunFolder
from saga_ray.types import Dataset

MAX_FAILURES = 2
"""Times that a broken group of workers is started again; the runs go on from their checkpoints."""


@dataclass(frozen=True)
class Job:
    """One run to be done: its configuration, and the name of its folder."""

    config: RunConfig
    name: str


def run_on_ray(
    jobs: Sequence[Job], runs_uri: str | Path, progress: Progress | None = None, cluster: Cluster | None = None
) -> list[TrainResult]:
    """Train and evaluate `jobs` in order on one group of workers and one scorer service; finished ones are left alone.

    Joins the cluster that is there or starts one (`saga_ray.on_ray.cluster.connect`); afterwards nothing of it is left.

    Args:
        cluster: The connection, if there is one already.

    Returns:
        Results in the order of `jobs`.

    Raises:
        ValueError: sentences about configuration, data, model folder, names, storage or resources.
        RuntimeError: if the workers failed more often than they are started again.
    """
    progress = progress or Silent()
    runs = Storage.open(runs_uri)
    results: dict[str, TrainResult] = {}
    for job in jobs:
        finished = finished_result(RunFolder(runs, job.name), job.config)
        if finished is not None:
            results[job.name] = finished
    open_jobs = [job for job in jobs if job.name not in results]
    if open_jobs:
        _check_equal_resources(open_jobs)
        runs.check_writable()
        check_inputs([job.config for job in open_jobs], runs, progress)
        with contextlib.ExitStack() as stack:
            if cluster is None:
                progress.stage("starting Ray")
                cluster = stack.enter_context(connect([job.config for job in open_jobs]))
            results |= train_group(open_jobs, runs, progress, cluster)
    return [results[job.name] for job in jobs]


def check_inputs(configs: Sequence[RunConfig], runs: Storage, progress: Progress) -> None:
    """Let what is wrong with data or MLLM folder show here, before anything is started.

    Args:
        runs: where it is noted which data sets are known to be sound.

    Raises:
        ValueError: the sentence.
    """
    for config in {config.model_dump_json(include={"dataset", "data"}): config for config in configs}.values():
        progress.stage(f"loading the data set {config.dataset}")
        check_evaluation_images(config, load_dataset(config), runs, progress)
    asking = next((config for config in configs if config.asks_the_mllm), None)
    # A pinned hub model is fetched where it is used.
    if asking is not None and (asking.mllm.revision is None or Path(str(asking.mllm.path)).exists()):
        from saga_ray.scorer.length import check_prompt_fits

        check_prompt_fits(asking)


def _check_equal_resources(jobs: Sequence[Job]) -> None:
    first = jobs[0].config.resources
    for job in jobs[1:]:
        for key in ("num_workers", "cpus_per_worker", "gpus_per_worker"):
            one, other = getattr(first, key), getattr(job.config.resources, key)
            if one != other:
                raise ValueError(
                    f"resources.{key}: {other} for run '{job.name}' but {one} for '{jobs[0].name}'; runs of one command "
                    f"share their workers, so give all of them the same value"
                )


def train_group(
    jobs: Sequence[Job], runs: Storage, progress: Progress, cluster: Cluster, app: str | None = None
) -> dict[str, TrainResult]:
    """Train unfinished jobs on one group of workers, on the scorer service `app` or on one of their own.

    Raises:
        ValueError: the sentence of the job that cannot work; NonFiniteError if its numbers stopped being numbers.
        RuntimeError: if the workers failed more often than they are started again.
    """
    from saga_ray.on_ray.serve import scorer_service

    results: dict[str, TrainResult] = {}

    def on_note(kind: str, note: Any) -> None:
        if kind == "stage":
            progress.stage(note)
        elif kind == "part":
            progress.part(*note)
        elif kind == "step":
            progress.step(*note)
        elif kind == "result":
            # A group that was started again finds its first runs finished; what they were before counts.
            results.setdefault(note.name, note)

    configs = [job.config for job in jobs]
    service = scorer_service(configs, cluster) if app is None else contextlib.nullcontext(app)
    with bulletin(on_note) as board, service as app:
        progress.stage("starting training workers" + (" and the frozen MLLM" if app else ""))
        failure = _fit(jobs, runs, cluster, app, board)
        refusal = ray.get(board.refusal.remote())
    if refusal is not None:
        raise refusal.error()
    if failure is not None:
        raise RuntimeError(_explain(failure)) from failure
    if len(results) < len(jobs):
        raise KeyboardInterrupt  # Train ends quietly when it is interrupted
    return results


def _fit(
    jobs: Sequence[Job], runs: Storage, cluster: Cluster, app: str | None, board: ActorHandle
) -> TrainingFailedError | None:
    """Run the group to its end; a failure is returned, since the reason may stand on the board."""
    config = jobs[0].config
    with ray_storage(runs, cluster) as storage_path, _own_interrupts():
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "jobs": [(to_yaml(job.config), job.name) for job in jobs],
                "runs": runs.uri,
                "app": app,
                "board": board,
                "folder": os.getcwd(),
                "num_cores": cluster.num_cores,
                "data_group": cluster.placement("data"),
            },
            scaling_config=scaling(config, cluster),
            torch_config=TorchConfig(backend="nccl" if config.resources.gpus_per_worker else "gloo"),
            run_config=ray.train.RunConfig(
                # Our folders say how far a run is; Ray's own record is new each time, and thrown away.
                name=f"saga-ray-{uuid.uuid4().hex[:12]}",
                storage_path=storage_path,
                failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=2),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as failure:
            return failure
    return None


def scaling(config: RunConfig, cluster: Cluster) -> ScalingConfig:
    """The group of workers that `resources.*` asks for."""
    r = config.resources
    return ScalingConfig(
        num_workers=r.num_workers,
        use_gpu=r.gpus_per_worker > 0,
        resources_per_worker={"CPU": r.cpus_per_worker, **({"GPU": r.gpus_per_worker} if r.gpus_per_worker else {})},
        label_selector=cluster.placement("training") or None,
    )


@contextlib.contextmanager
def ray_storage(runs: Storage, cluster: Cluster) -> Iterator[str]:
    """Where Ray may write while it works: here if the cluster is this machine, else where all nodes see it."""
    if cluster.started:
        with tempfile.TemporaryDirectory(prefix="saga-ray-") as folder:
            yield folder
        return
    name = f".ray-{uuid.uuid4().hex[:12]}"
    try:
        yield runs.child(name).uri
    finally:
        runs.delete(name)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Take back the handler of Ctrl-C that Train puts in place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _explain(failure: TrainingFailedError) -> str:
    if isinstance(failure, WorkerGroupError) and failure.worker_failures:
        rank, cause = next(iter(failure.worker_failures.items()))
        return (
            f"training worker {rank} failed {MAX_FAILURES + 1} times, last with {type(cause).__name__}: {cause}; "
            f"the same command goes on from the last checkpoint"
        )
    return str(failure)


class BulletinProgress:
    """Progress of a worker, pinned for the driver."""

    def __init__(self, board: ActorHandle, prefix: str = "") -> None:
        self._board, self._prefix = board, prefix

    def stage(self, text: str) -> None:
        """Pin a new stage."""
        self._board.pin.remote("stage", f"{self._prefix}{text}")

    def part(self, done: int, of: int) -> None:
        """Pin how far the stage is."""
        self._board.pin.remote("part", (done, of))

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float | str]) -> None:
        """Pin a finished step."""
        self._board.pin.remote("step", (step, num_steps, dict(metrics)))


def _worker(told: Mapping[str, Any]) -> None:
    """All jobs, in order, on one rank; runs in a process of Ray Train."""
    import torch
    from ray.train.torch import get_device

    from saga_ray.train.context import TorchContext, default_device

    board = told["board"]
    if ray.get(board.refusal.remote()) is not None:
        return
    # Relative paths mean the same here as where the command was typed, if this machine has that folder.
    if os.path.isdir(told["folder"]):
        os.chdir(told["folder"])
    # Alone, a worker takes the GPU that it can see, as a run without Ray does; several would share it unasked.
    alone = ray.train.get_context().get_world_size() == 1
    context = TorchContext(default_device() if alone else get_device())
    runs = Storage.open(told["runs"])
    data_sets: dict[str, Dataset] = {}
    jobs = [Job(from_yaml(text, name), name) for text, name in told["jobs"]]
    for number, job in enumerate(jobs, 1):
        prefix = f"{job.name} ({number} of {len(jobs)}): " if len(jobs) > 1 else ""
        torch.set_num_threads(trainer_threads(job.config, told["num_cores"]))
        try:
            key = job.config.model_dump_json(include={"dataset", "data"})
            if key not in data_sets:
                data_sets[key] = load_dataset(job.config)
            with pinned_warnings(board):
                result = run_job(
                    job,
                    data_sets[key],
                    runs,
                    context,
                    app=told["app"],
                    num_cores=told["num_cores"],
                    data_group=told["data_group"],
                    progress=BulletinProgress(board, prefix),
                )
        except ValueError as error:
            if not is_ours(error):
                raise
            ray.get(board.refuse.remote(str(error), isinstance(error, NonFiniteError)))
            if context.world_size == 1:
                return
            # The other ranks wait for this one: only the end of the group frees them. It is started again, and refuses.
            raise
        if result is not None:
            ray.get(board.pin.remote("result", result))


def run_job(
    job: Job,
    dataset: Dataset,
    runs: Storage,
    context: Any,
    *,
    app: str | None,
    num_cores: int | None,
    data_group: Mapping[str, str],
    progress: Progress | None,
) -> TrainResult | None:
    """The training loop of `--local`, with batches from Ray Data and answers from Ray Serve."""
    from saga_ray.on_ray.remote import remote_scorer
    from saga_ray.train.loop import train

    config = job.config
    scorer = None
    if config.asks_the_mllm:
        name = config.scorer.service or app
        assert name is not None
        scorer = remote_scorer(name, config)
    batches = ray_batches(
        dataset.train,
        config.data,
        config.seed,
        context.rank,
        context.world_size,
        Decoding(
            config.resources.cpus_per_data_task,
            decoding_tasks(num_cores, ray.cluster_resources().get("CPU", 1.0), context.world_size),
            config.resources.read_ahead_mb * 1e6,
            data_group,
        ),
    )
    return train(config, dataset, scorer, context, batches, RunFolder(runs, job.name), progress)
