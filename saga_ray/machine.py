"""What this process may use of its machine."""

from __future__ import annotations

import os


def num_cpus() -> int:
    """Processors that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
