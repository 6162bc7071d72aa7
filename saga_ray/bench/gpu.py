"""A training step at Qwen3-VL-8B's real shapes on one GPU, beside what the chip can do: `python -m saga_ray.bench.gpu`.

Weights are random and are drawn on the GPU, answers have a forced length, rewards are given. Each part writes what it found
into the JSON file at once; a part that fails says so there, and the next begins. It needs torch, transformers and numpy, and
runs with `--tiny` on a CPU, which measures nothing of interest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from saga_ray.bench.gpu_parts import PARTS
from saga_ray.bench.gpu_step import TINY, Bench, BenchSize, real_size


class Report:
    """A JSON file that is whole after every part."""

    def __init__(self, path: Path, minutes: float) -> None:
        self._path, self._ends = path, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {}

    def part(self, name: str, work: Callable[[], Any], least_s: float) -> None:
        """Run one part, if so many seconds are left; whatever happens is written down."""
        left = self._ends - time.monotonic()
        began = time.monotonic()
        print(f"[{left:5.0f} s left] {name} ...", flush=True)
        if left < least_s:
            self.found[name] = {"skipped": f"{left:.0f} s left, {least_s:.0f} s wanted"}
        else:
            try:
                self.found[name] = work()
            except Exception as error:  # the other parts are worth having
                self.found[name] = {"error": f"{type(error).__name__}: {error}"[:600], "where": _where(error)}
        if isinstance(self.found[name], dict):
            self.found[name]["part_s"] = round(time.monotonic() - began, 2)
        self.write()
        print(json.dumps(self.found[name], default=str)[:1500], flush=True)

    def write(self) -> None:
        """Replace the file by a whole one."""
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(self.found, indent=1, default=str), encoding="utf-8")
        os.replace(draft, self._path)


def _where(error: Exception) -> list[str]:
    return [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-6:]]


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on, and with."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        found["multiprocessors"] = properties.multi_processor_count
    return found


def bench(
    size: BenchSize, device: torch.device, path: Path, minutes: float, only: list[str] | None = None
) -> dict[str, Any]:
    """Run all parts (or those named) and return what is in the file."""
    report = Report(path, minutes)
    report.found["machine"] = machine(device)
    report.found["size"] = size.described()
    made: dict[str, Bench] = {}
    report.part("model", lambda: made.setdefault("bench", Bench(size, device)).described(), 30)
    if "bench" in made:
        for name, (work, least_s) in PARTS.items():
            if only is None or name in only:
                report.part(name, lambda work=work: work(made["bench"], report.found), least_s)  # type: ignore[misc]
    return report.found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins for which too little time is left")
    parser.add_argument("--json", type=Path, required=True, help="file that is rewritten after every part")
    parser.add_argument("--tiny", action="store_true", help="a few units wide, on the CPU: shows that all of it works")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="parts to run, in the usual order")
    parser.add_argument("--pairs", type=int, help="pairs of images per step of the paper's shape")
    told = parser.parse_args()
    if not told.tiny and not torch.cuda.is_available():
        parser.error("no GPU is visible; --tiny runs on the CPU")
    device = torch.device("cpu" if told.tiny else "cuda")
    size = TINY if told.tiny else real_size(told.pairs)
    found = bench(size, device, told.json, told.minutes, told.only)
    print(json.dumps({name: value for name, value in found.items() if name != "profile"}, default=str))


if __name__ == "__main__":
    main()
