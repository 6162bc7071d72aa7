"""The tasks of a study on Ray: one process each, anywhere in the cluster, in which the frozen MLLM lives too."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import RayError

from saga_ray.config import ResourcesConfig
from saga_ray.on_ray.cluster import Cluster, check_placeable, connect
from saga_ray.on_ray.resources import in_one_process, jobs_at_once
from saga_ray.study.plan import Task
from saga_ray.study.record import Record
from saga_ray.study.run import Hands
from saga_ray.study.work import do_task, without_scores


@ray.remote(max_retries=0)
def _do(task: Task, runs_uri: str, keep_run: bool, folder: str) -> Record:
    if in_one_process(task.config.resources).gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else every run of a node would take its first GPU
    import torch

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Relative paths mean the same here as where the command was typed, if this machine has that folder.
    if os.path.isdir(folder):
        os.chdir(folder)
    torch.set_num_threads(max(1, int(task.config.resources.cpus_per_worker)))
    return do_task(task, runs_uri, keep_run)


class RayHands:
    """Tasks in Ray's worker processes, which stay for the next task."""

    def __init__(self, cluster: Cluster, num_jobs: int, runs_uri: str, keep_runs: bool) -> None:
        self.num_jobs = num_jobs
        self._told = (runs_uri, keep_runs, os.getcwd())
        selector = cluster.placement("training")
        self._options = {"label_selector": selector} if selector else {}
        self._running: dict[ray.ObjectRef, Task] = {}

    def start(self, task: Task) -> None:
        """Hand it to the cluster."""
        asked = in_one_process(task.config.resources)
        do = _do.options(num_cpus=asked.cpus, num_gpus=asked.gpus, **self._options)
        self._running[do.remote(task, *self._told)] = task

    def ended(self, patience_s: float) -> list[tuple[Task, Record]]:
        """Wait for the first."""
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=patience_s)
        out = []
        for reference in ready:
            task = self._running.pop(reference)
            try:
                out.append((task, ray.get(reference)))
            except RayError as error:  # the process or its node is gone; other tasks go on
                out.append((task, without_scores(task, "failed", f"{type(error).__name__}: {error}")))
        return out


@contextlib.contextmanager
def ray_hands(
    num_jobs: int | None, runs_uri: str, keep_runs: bool, resources: Sequence[ResourcesConfig]
) -> Iterator[Hands]:
    """Join or start a cluster; as many jobs as it has room for, unless a number is given.

    Args:
        resources: of the runs.

    Raises:
        ValueError: if a run can never be placed.
    """
    with connect([]) as cluster:
        asked = [in_one_process(each) for each in resources]
        check_placeable(asked)
        num_cpus, num_gpus = cluster.total()
        room = jobs_at_once(asked, cluster.num_cores or num_cpus, num_gpus)
        yield RayHands(cluster, num_jobs or room, runs_uri, keep_runs)
