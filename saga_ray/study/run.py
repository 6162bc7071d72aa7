"""Do the open tasks of a study, several side by side, and keep a record of each; typed again, it goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from saga_ray.study.plan import Plan, Planner, Task, is_done, seconds_left
from saga_ray.study.record import Record, Records

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Hands(Protocol):
    """What does tasks, some at a time: this process, a pool of others, or Ray."""

    num_jobs: int

    def start(self, task: Task) -> None:
        """Begin a task; there are never more than `num_jobs`."""
        ...

    def ended(self, patience_s: float) -> list[tuple[Task, Record]]:
        """Wait until a task or more have ended, but no longer than that, if waiting can be broken off."""
        ...


class Watcher(Protocol):
    """Told in lines how the study goes."""

    def stage(self, text: str) -> None:
        """A new line."""
        ...


def run_study(
    planner: Planner,
    records: Records,
    hands: Hands,
    watcher: Watcher,
    *,
    blocks: Collection[str] | None = None,
    limit_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    steps_done: Callable[[Task], int] | None = None,
    patience_s: float = 60,
) -> Plan:
    """Do what is open, in the plan's order; a run of a table begins when the trials of its row have ended.

    A task that fails is not tried again before the next call, and does not stop the others.

    Args:
        limit_s: No task is begun after so many seconds; those that were begun end.
        steps_done: How far a task is; it is asked, and told, whenever none has ended for `patience_s`.

    Returns:
        The plan as it stands at the end.
    """
    began, tried = clock(), set[str]()
    running: dict[str, Task] = {}
    while True:
        records.refresh()
        plan = planner.plan(records.get, blocks)
        for task in plan.open(records.get):
            if len(running) >= hands.num_jobs or (limit_s is not None and clock() - began >= limit_s):
                break
            if task.name not in tried:
                tried.add(task.name)
                hands.start(task)
                running[task.name] = task
        if not running:
            return plan
        ended = hands.ended(patience_s)
        for task, record in ended:
            del running[task.name]
            records.write(record)
            watcher.stage(_line(task, record, plan, records, hands.num_jobs))
        if not ended and steps_done is not None:
            watcher.stage("; ".join(f"{task.title}: step {steps_done(task)}" for task in running.values()))


def _line(task: Task, record: Record, plan: Plan, records: Records, jobs: int) -> str:
    done = sum(is_done(each, records.get) for each in plan.tasks)
    left = seconds_left(plan, records.get, records.all(), jobs)
    became = f"{record.status} ({record.cause})"
    if record.status == "finished":
        became = f"R@1 {100 * record.scores['recall@1']:.1f}, {record.wall_s:.0f} s"
    left_words = "" if left is None else f", {about(left)} left"
    return f"{done} of {len(plan.tasks) + plan.num_waiting} done{left_words}; {task.title}: {became}"


def about(seconds: float) -> str:
    """A time as a person would say it."""
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} hours"


class HereHands:
    """Tasks in this process, one at a time, on one thread."""

    num_jobs = 1

    def __init__(self, runs_uri: str, keep_runs: bool) -> None:
        self._runs_uri, self._keep_runs = runs_uri, keep_runs
        self._task: Task | None = None

    def start(self, task: Task) -> None:
        """Remember it."""
        self._task = task

    def ended(self, patience_s: float) -> list[tuple[Task, Record]]:
        """Do it, to its end."""
        import torch

        from saga_ray.study.work import do_task

        assert self._task is not None
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return [(self._task, do_task(self._task, self._runs_uri, self._keep_runs))]
        finally:
            torch.set_num_threads(threads)


class PoolHands:
    """Tasks in processes of their own, which stay for the next task: importing takes longer than a short run."""

    def __init__(self, num_jobs: int, runs_uri: str, keep_runs: bool) -> None:
        self.num_jobs = num_jobs
        self._runs_uri, self._keep_runs = runs_uri, keep_runs
        self._pool = self._new_pool()
        self._running: dict[Future[Record], Task] = {}

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.num_jobs, mp_context=context, initializer=_prepare_worker)

    def start(self, task: Task) -> None:
        """Hand it to a process."""
        from saga_ray.study.work import do_task

        with _one_thread():  # a process that starts reads these before it imports torch
            try:
                future = self._pool.submit(do_task, task, self._runs_uri, self._keep_runs)
            except BrokenProcessPool:
                self._pool = self._new_pool()
                future = self._pool.submit(do_task, task, self._runs_uri, self._keep_runs)
        self._running[future] = task

    def ended(self, patience_s: float) -> list[tuple[Task, Record]]:
        """Wait for the first; all are gone if a process died, and nobody knows whose fault it was."""
        from saga_ray.study.work import without_scores

        ended, _ = wait(self._running, patience_s, return_when=FIRST_COMPLETED)
        out = []
        for future in ended:
            task = self._running.pop(future)
            try:
                out.append((task, future.result()))
            except BrokenProcessPool:
                cause = "a process of the pool died while this ran (out of memory?); the same command tries it again"
                out.append((task, without_scores(task, "failed", cause)))
        return out

    def stop(self) -> None:
        """End the processes, whatever they do; runs go on from their checkpoints another time."""
        busy = bool(self._running)
        self._pool.shutdown(wait=not busy, cancel_futures=True)
        if busy:
            for process in multiprocessing.active_children():
                process.terminate()


def _prepare_worker() -> None:
    import signal
    import warnings

    import torch

    # Ctrl-C is the driver's affair; its children would each print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_driver, args=(os.getppid(),), daemon=True).start()


def _end_with_the_driver(driver: int) -> None:
    """A driver that was killed cannot end its processes; whatever they still do would be written down by nobody."""
    while os.getppid() == driver:
        time.sleep(2)
    os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ |= _ONE_THREAD
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def local_hands(num_jobs: int, runs_uri: str, keep_runs: bool) -> Iterator[Hands]:
    """This process for one job, a pool of processes for more."""
    if num_jobs == 1:
        yield HereHands(runs_uri, keep_runs)
        return
    hands = PoolHands(num_jobs, runs_uri, keep_runs)
    try:
        yield hands
    finally:
        hands.stop()
