"""A bare decoding loop on every core: the limit of this decoder. Its processes never import torch."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from saga_ray.bench.clock import Contender, Material
from saga_ray.types import ImageSource


@contextlib.contextmanager
def bare_loop(material: Material, num_processes: int) -> Iterator[Contender]:
    """Decoding and resizing alone, pixels thrown away where they were made: nothing can be faster with this decoder."""
    plans = material.planner()
    context = multiprocessing.get_context("spawn")
    told = (material.table.source, material.data.image_size)
    with ProcessPoolExecutor(num_processes, context, _remember, told) as pool:

        def batches(num: int) -> Iterator[int]:
            coming = [pool.submit(_load, plans.plan(index).rows) for index in range(num)]
            try:
                for future in coming:
                    yield future.result()
            finally:
                for future in coming:
                    future.cancel()

        list(batches(2 * num_processes))  # processes start with their first work
        yield batches


_told: tuple[ImageSource, int] | None = None


def _remember(source: ImageSource, size: int) -> None:
    global _told
    _told = source, size


def _load(rows: tuple[int, ...]) -> int:
    assert _told is not None
    return len(_told[0].load(rows, _told[1]))
