"""The tasks of a study on Ray: one CPU each, anywhere in the cluster; the frozen MLLM lives in the task's process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray
from ray.exceptions import RayError

from saga_ray.on_ray.cluster import Cluster, connect
from saga_ray.study.plan import Task
from saga_ray.study.record import Record
from saga_ray.study.run import Hands
from saga_ray.study.work import do_task, without_scores


@ray.remote(num_cpus=1, max_retries=0)
def _do(task: Task, runs_uri: str, keep_run: bool, folder: str) -> Record:
    import torch

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Relative paths mean the same here as where the command was typed, if this machine has that folder.
    if os.path.isdir(folder):
        os.chdir(folder)
    torch.set_num_threads(1)
    return do_task(task, runs_uri, keep_run)


class RayHands:
    """Tasks in Ray's worker processes, which stay for the next task."""

    def __init__(self, cluster: Cluster, num_jobs: int, runs_uri: str, keep_runs: bool) -> None:
        self.num_jobs = num_jobs
        self._told = (runs_uri, keep_runs, os.getcwd())
        selector = cluster.placement("training")
        self._do = _do.options(label_selector=selector) if selector else _do
        self._running: dict[ray.ObjectRef, Task] = {}

    def start(self, task: Task) -> None:
        """Hand it to the cluster."""
        self._running[self._do.remote(task, *self._told)] = task

    def ended(self) -> list[tuple[Task, Record]]:
        """Wait for the first."""
        ready, _ = ray.wait(list(self._running), num_returns=1)
        out = []
        for reference in ready:
            task = self._running.pop(reference)
            try:
                out.append((task, ray.get(reference)))
            except RayError as error:  # the process or its node is gone; other tasks go on
                out.append((task, without_scores(task, "failed", f"{type(error).__name__}: {error}")))
        return out


@contextlib.contextmanager
def ray_hands(num_jobs: int | None, runs_uri: str, keep_runs: bool) -> Iterator[Hands]:
    """Join or start a cluster; as many jobs as it has CPUs, unless a number is given."""
    with connect([]) as cluster:
        num_cpus = cluster.num_cores or max(1, int(cluster.total()[0]))
        yield RayHands(cluster, num_jobs or num_cpus, runs_uri, keep_runs)
