"""Memory of this process and all that it started, while something runs."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY_S = 0.2


class Peak:
    """The largest value seen."""

    def __init__(self) -> None:
        self.mb: float | None = None

    def see(self, mb: float | None) -> None:
        """Take a measurement into account."""
        if mb is not None:
            self.mb = mb if self.mb is None else max(self.mb, mb)


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure several times a second until the context ends; `mb` stays None where there is no /proc."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            peak.see(memory_mb())

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.see(memory_mb())


def memory_mb(root: int | None = None) -> float | None:
    """Resident memory of a process and its descendants in MB; pages that several of them share count once (PSS)."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    return sum(map(_own_kb, descendants(os.getpid() if root is None else root))) / 1024


def descendants(root: int) -> list[int]:
    """`root` and every process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name in parentheses may hold anything; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, to_do = [], [root]
    while to_do:
        found.append(to_do.pop())
        to_do += children.get(found[-1], [])
    return found


def _own_kb(process: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
