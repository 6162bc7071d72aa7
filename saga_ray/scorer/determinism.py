"""What deterministic mode asks of torch, in the trainer and in every process that scores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from saga_ray.config import RunConfig


@contextlib.contextmanager
def deterministic(config: RunConfig) -> Iterator[None]:
    """Fixed threads and deterministic kernels while `scorer.deterministic` is set; the process's own settings afterwards."""
    if not config.scorer.deterministic:
        yield
        return
    threads, was = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A product's last bit may depend on how it is shared out.
    torch.set_num_threads(config.scorer.threads)
    # A warning, not an error: torch has no deterministic cumulative sum on GPUs, which the scorer's sampler needs.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(was, warn_only=only_warned)
