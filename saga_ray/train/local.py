"""A whole run in one process: same functions as on Ray, which need not be installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saga_ray.config import RunConfig
from saga_ray.data import load_dataset
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import micro_batches
from saga_ray.scorer.determinism import deterministic
from saga_ray.storage import Storage
from saga_ray.train.context import LocalContext
from saga_ray.train.evaluation_images import check_evaluation_images
from saga_ray.train.loop import TrainResult, finished_result, train
from saga_ray.train.progress import Progress, Silent
from saga_ray.train.run_folder import RunFolder
from saga_ray.types import Dataset, MicroBatch


def run_local(
    config: RunConfig,
    runs_uri: str | Path,
    name: str,
    progress: Progress | None = None,
    dataset: Dataset | None = None,
) -> TrainResult:
    """Train and evaluate one run here; a finished one is returned as it is.

    Args:
        dataset: That of `config`, where it is at hand already, and its images are known to be sound.

    Raises:
        ValueError: sentences about configuration, data, model folder, run name or storage.
    """
    progress = progress or Silent()
    run = RunFolder(Storage.open(runs_uri), name)
    finished = finished_result(run, config)
    if finished is not None:
        return finished
    run.runs.check_writable()
    with deterministic(config):
        if dataset is None:
            progress.stage(f"loading the data set {config.dataset}")
            dataset = load_dataset(config)
            check_evaluation_images(config, dataset, run.runs, progress)
        scorer = None
        if config.asks_the_mllm:
            # Imported here: methods without the MLLM do not load it.
            from saga_ray.scorer.length import check_prompt_fits
            from saga_ray.scorer.local import LocalScorer, build_engine

            check_prompt_fits(config)
            progress.stage("loading the frozen MLLM")
            scorer = LocalScorer(build_engine(config))

        def batches(start: int, stop: int, planner: PairPlanner) -> Iterator[MicroBatch]:
            return micro_batches(dataset.train, planner, config.data, config.seed, start, stop, 0, 1)

        result = train(config, dataset, scorer, LocalContext(), batches, run, progress)
    assert result is not None
    return result
