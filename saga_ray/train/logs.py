"""What a run writes while it trains: metrics.jsonl, TensorBoard events, completions.parquet; by one rank."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from saga_ray.storage import Storage
from saga_ray.train.completions import AllCompletions, Completions, SampledCompletions

METRICS, EVENTS = "metrics.jsonl", "tensorboard"


class RunLog:
    """Opened at a checkpoint's step: lines up to it stay, later ones go.

    On storage that is not this machine's disk, files grow in a temporary folder and are copied at every `sync`.
    """

    def __init__(self, run: Storage, step: int, num_steps: int, *, store_answers: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._temporary = None if run.is_local else tempfile.TemporaryDirectory(prefix="saga-ray-")
        self._folder = run.local_path() if self._temporary is None else Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = kept_lines(run, step)
        (self._folder / METRICS).write_text("".join(kept), encoding="utf-8")
        self._metrics = (self._folder / METRICS).open("a", encoding="utf-8", buffering=1)
        self.completions: Completions = (
            AllCompletions(run, step) if store_answers else SampledCompletions(run, step, num_steps)
        )
        self._events = SummaryWriter(str(self._folder / EVENTS), purge_step=step + 1 if step else None)

    def step(self, metrics: Mapping[str, float | str]) -> None:
        """Append one flushed line."""
        self._metrics.write(json.dumps(metrics) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, int(metrics["step"]))

    def sync(self) -> None:
        """Make everything so far durable."""
        self._events.flush()
        self.completions.sync()
        if self._temporary is not None:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    self._run.write(path.relative_to(self._folder).as_posix(), path.read_bytes())

    def close(self) -> None:
        """Sync and let go of the files."""
        self.sync()
        self._metrics.close()
        self._events.close()
        if self._temporary is not None:
            self._temporary.cleanup()


def kept_lines(run: Storage, step: int) -> list[str]:
    """Lines of metrics.jsonl up to a step; a line that was cut off by a crash, and all after it, are gone."""
    if step == 0 or not run.exists(METRICS):
        return []
    kept = []
    for line in run.read(METRICS).decode("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    return kept
