"""Requests of many callers wait here for the one thread that computes; those that may share a pass share one, by tokens."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

_REMEMBERED = 32
"""Finished jobs whose results a repeated question still finds, at most."""
_REMEMBERED_BYTES = 2**30
"""Size of those results together, at most; the latest is kept however large it is."""


@dataclass(frozen=True)
class Job:
    """One request."""

    name: str
    """The same for the same question asked again: it is computed once."""
    tokens: int
    """Most tokens that it can take."""
    work: Any
    """What the computing function needs to know."""
    group: Hashable | None = None
    """Jobs of one group may be computed together; None only alone."""
    budget: int = 0
    """Tokens that it may be computed together with, itself included."""
    limit_s: float = float("inf")
    """Seconds after which its computation counts as stuck."""
    future: Future = field(default_factory=Future, compare=False)


class TokenQueue:
    """A queue in the order of arrival, emptied by one thread of its own.

    Args:
        compute: from jobs of one group to their results, in order. If it raises for several jobs, each is computed alone,
            so that nobody hears of a neighbour's mistake.
        size: bytes of a result, for what is remembered.
        remembered_bytes: of finished jobs' results together.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Job]], Sequence[Any]],
        size: Callable[[Any], int] = lambda result: 0,
        remembered_bytes: int = _REMEMBERED_BYTES,
    ) -> None:
        self._compute, self._size, self._remembered_bytes = compute, size, remembered_bytes
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        # Futures, not jobs: what a finished job worked on is of no use any more.
        self._known: OrderedDict[str, Future] = OrderedDict()
        self._since = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future:
        """The future of the job's result; that of the first one, if a job of this name is known."""
        with self._changed:
            known = self._known.get(job.name)
            # A failed one is tried again: what it failed of may be over.
            if known is not None and not (known.done() and known.exception() is not None):
                self._known.move_to_end(job.name)
                return known
            self._known[job.name] = job.future
            self._waiting.append(job)
            self._changed.notify()
            return job.future

    @property
    def num_tokens(self) -> int:
        """Tokens of all jobs that wait or are being computed."""
        with self._changed:
            return sum(job.tokens for job in (*self._waiting, *self._running))

    @property
    def num_jobs(self) -> int:
        """Jobs that wait or are being computed."""
        with self._changed:
            return len(self._waiting) + len(self._running)

    def holds(self, name: str) -> bool:
        """True if a job of this name waits or is being computed."""
        with self._changed:
            return any(job.name == name for job in (*self._waiting, *self._running))

    def is_advancing(self) -> bool:
        """True if there are jobs, and the computation at hand is one that ends in time or counts as stuck."""
        with self._changed:
            limit_s = min((job.limit_s for job in self._running), default=0.0)
            return self.num_jobs > 0 and limit_s < float("inf") and self.stuck_s() == 0

    def stuck_s(self) -> float:
        """Seconds that the computation at hand has taken beyond its limit; 0 if it has not."""
        with self._changed:
            limit_s = min((job.limit_s for job in self._running), default=float("inf"))
            return max(0.0, time.monotonic() - self._since - limit_s)

    def is_working(self) -> bool:
        """False if the thread has ended, which it never should."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                jobs = self._running = self._next()
                self._since = time.monotonic()
            self._run(jobs)
            with self._changed:
                self._running = []
                self._forget()
            del jobs  # the next wait may be long

    def _next(self) -> list[Job]:
        """The oldest job, and all of its group behind it that fit its budget."""
        first = self._waiting.popleft()
        jobs, tokens = [first], first.tokens
        if first.group is None:
            return jobs
        for job in [job for job in self._waiting if job.group == first.group]:
            if tokens + job.tokens > first.budget:
                break
            self._waiting.remove(job)
            jobs.append(job)
            tokens += job.tokens
        return jobs

    def _run(self, jobs: Sequence[Job]) -> None:
        try:
            results = self._compute(jobs)
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            # Each alone and in its turn, so that the time of none counts as another's.
            again = [replace(job, group=None) for job in jobs if not job.future.done()]
            with self._changed:
                self._waiting.extendleft(reversed(again))
                self._running = []

    def _forget(self) -> None:
        """Remember the latest results, up to a number and a size; no failure, since that is tried again."""
        num, size = 0, 0
        for name, future in reversed(list(self._known.items())):
            if not future.done():
                continue
            if future.exception() is not None:
                del self._known[name]
                continue
            num, size = num + 1, size + self._size(future.result())
            if num > _REMEMBERED or (num > 1 and size > self._remembered_bytes):
                del self._known[name]
