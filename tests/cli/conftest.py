"""Runs the command line inside the test's process, in an empty folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_ray.cli.main import run

SMALL = (
    "--set", "data.num_classes=[8,3,4]", "data.num_images=[4,4,4]", "data.classes_per_batch=8", "data.images_per_class=2",
    "data.pairs_per_batch=4", "grpo.group_size=2", "grpo.contributing_pairs=4", "grpo.max_new_tokens=12",
)  # fmt: skip
"""A demo world of seconds."""


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The sentence for the user."""
        return self.err.splitlines()[-1] if self.err else ""


@pytest.fixture
def type_(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAGA_RAY_DEBUG", raising=False)

    def typed(*words: str) -> Outcome:
        capfd.readouterr()
        code = run(list(words))
        return Outcome(code, *capfd.readouterr())

    return typed


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder data set: 8 classes with 4 pictures each."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for label in range(8):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(4):
            pixels_HWC = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels_HWC).save(folder / f"class{label}" / f"{number}.png")
    return folder
