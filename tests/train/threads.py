"""Ranks as threads of one process: a RunContext that needs no process group, so that tests of ranks take seconds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saga_ray.types import Scorer, ScoreRequest, ScoreResult


class _Meeting:
    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=300)
        self.brought: list[Any] = [None] * world_size


class ThreadContext:
    """One of several threads that run the same code."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.world_size = rank, len(meeting.brought)
        self.device = torch.device("cpu")
        self._meeting = meeting

    def _exchange(self, value: Any) -> list[Any]:
        self._meeting.brought[self.rank] = value
        self._meeting.barrier.wait()
        everyone = list(self._meeting.brought)
        self._meeting.barrier.wait()
        return everyone

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        everyone = self._exchange([tensor.detach().clone() for tensor in tensors])
        return [torch.stack(list(same)).sum(dim=0) for same in zip(*everyone, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._exchange(json.dumps(value))]

    def report(self, metrics: Mapping[str, float | str]) -> None:
        pass


class TakingTurns:
    """A scorer that threads share; the library's model code keeps state that two of them must not touch at once."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self._lock = scorer, threading.Lock()

    def score(self, request: ScoreRequest) -> ScoreResult:
        with self._lock:
            return self._scorer.score(request)

    def describe(self) -> Mapping[str, str]:
        return self._scorer.describe()


def run_ranks(world_size: int, work: Callable[[ThreadContext], Any]) -> list[Any]:
    """Call `work` once per rank, all at the same time; returns what each returned."""
    meeting = _Meeting(world_size)
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadContext(rank, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return results
