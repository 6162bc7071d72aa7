"""What a replica of the scorer tells Prometheus, on the metrics port of its Ray node, under `ray_saga_ray_scorer_*`."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ray.serve import metrics


class Meters:
    """Queue, throughput, fill of the passes, malformed answers and memory of one replica; Serve adds its name."""

    def __init__(self) -> None:
        self._queue = metrics.Gauge("saga_ray_scorer_queue_tokens", "Tokens that wait or are being scored, at most.")
        self._tokens = metrics.Counter("saga_ray_scorer_tokens", "Tokens that the MLLM wrote or was given.")
        self._seconds = metrics.Counter("saga_ray_scorer_busy_seconds", "Seconds spent scoring.")
        self._rate = metrics.Gauge("saga_ray_scorer_tokens_per_second", "Tokens per second of the last pass.")
        self._fill = metrics.Gauge(
            "saga_ray_scorer_batch_fill", "Share of the budget of tokens that the last pass used."
        )
        self._malformed = metrics.Gauge("saga_ray_scorer_malformed_share", "Share of answers that were not in form.")
        self._memory = metrics.Gauge(
            "saga_ray_scorer_memory_bytes", "Most memory so far: the GPU's, else the process's."
        )
        self._num_answers = self._num_malformed = 0

    def queue(self, tokens: int) -> None:
        """Tokens that wait or are being scored."""
        self._queue.set(tokens)

    @contextlib.contextmanager
    def batch(self, fill: float) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
        """Time a pass; hand the replies that travel to what is yielded."""
        began = time.perf_counter()

        def count(replies: Sequence[Mapping[str, Any]]) -> None:
            seconds = time.perf_counter() - began
            num_tokens = sum(int(reply["num_tokens_PG"].sum()) for reply in replies)
            self._num_answers += sum(reply["well_formed_PG"].size for reply in replies)
            self._num_malformed += sum(int((~reply["well_formed_PG"]).sum()) for reply in replies)
            self._fill.set(fill)
            self._seconds.inc(max(seconds, 1e-9))
            if num_tokens:
                self._tokens.inc(num_tokens)
            self._rate.set(num_tokens / max(seconds, 1e-9))
            self._malformed.set(self._num_malformed / max(1, self._num_answers))
            self._memory.set(memory_bytes())

        yield count


def memory_bytes() -> float:
    """Most bytes that this process held so far: on its GPU if it uses one, else in memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kilobytes if sys.platform == "darwin" else 1024 * kilobytes)
