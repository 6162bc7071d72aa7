"""Run the laws of every family and write what they measured: `python -m tests.mllm.capabilities`.

Only families whose tests all passed are written; the package shows the file with `saga-ray mllm families`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("test_families.py")
WRITTEN = Path(str(files("saga_ray").joinpath("mllm", "families", "capabilities.json")))


class Recorder:
    """What the tests recorded, and which families failed."""

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, object]] = defaultdict(dict)
        self.num_passed: dict[str, int] = defaultdict(int)
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[2].rstrip("]").split("-single-")[0].split("-double-")[0]
        if not report.passed:
            self.failed.add(name)
        elif report.when == "call" and name:
            self.num_passed[name] += 1
            self.measured[name].update(report.user_properties)


def main() -> int:
    """Write the table; exit code of the tests."""
    recorder = Recorder()
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(TESTS)], plugins=[recorder])
    families = {}
    for name, values in sorted(recorder.measured.items()):
        if name in recorder.failed:
            continue
        # Two digits are what is reproducible from machine to machine.
        rounded = {
            key: float(f"{v:.1e}") if isinstance(v, float) else v for key, v in values.items() if key != "family"
        }
        families[name] = {"tests": recorder.num_passed[name], **dict(sorted(rounded.items()))}
    versions = {name: version(name).split("+")[0] for name in ("transformers", "torch", "timm")}
    WRITTEN.write_text(json.dumps({**versions, "families": families}, indent=2) + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
