"""What a run tells whoever watches it; the command line draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Told by the first rank alone."""

    def stage(self, text: str) -> None:
        """A new stage begins, such as `embedding 1600 test images`."""
        ...

    def part(self, done: int, of: int) -> None:
        """So many images of the present stage are done."""
        ...

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float | str]) -> None:
        """Step `step` of `num_steps` is done."""
        ...


class Silent:
    """Nobody watches."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def part(self, done: int, of: int) -> None:
        """Say nothing."""

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float | str]) -> None:
        """Say nothing."""
