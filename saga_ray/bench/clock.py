"""What contenders decode, and when their micro-batches come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from saga_ray.config import DataConfig
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.types import ImageTable

Contender = Callable[[int], Iterable[Any]]
"""From a number of micro-batches to an iterator over at least so many."""


@dataclass(frozen=True)
class Material:
    """What is decoded: the same for everybody."""

    table: ImageTable
    data: DataConfig
    seed: int = 0

    def planner(self) -> PairPlanner:
        """The plan of a run with this seed."""
        return PairPlanner(self.table.labels_N, self.data, self.seed)


@dataclass(frozen=True)
class Timing:
    """When micro-batches came, in seconds after they were asked for."""

    arrivals_s: tuple[float, ...]

    @property
    def first_s(self) -> float:
        """Until the first one."""
        return self.arrivals_s[0]

    def steady_s(self, warm_up: int) -> float:
        """Seconds per micro-batch from number `warm_up` on: between two arrivals, both in full swing."""
        return (self.arrivals_s[-1] - self.arrivals_s[warm_up]) / (len(self.arrivals_s) - 1 - warm_up)


def timed(contender: Contender, num: int) -> Timing:
    """Take `num` micro-batches as fast as they come, and leave."""
    began = time.perf_counter()
    arrivals = []
    stream = iter(contender(num))
    try:
        for _ in range(num):
            next(stream)
            arrivals.append(time.perf_counter() - began)
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    return Timing(tuple(arrivals))
