"""Errors that end a run."""

from __future__ import annotations

import math


class NonFiniteError(ValueError):
    """A loss or gradient stopped being a number; no weight was changed with it."""


def check_finite(quantity: str, value: float, step: int) -> None:
    """Raise NonFiniteError if `value` is infinite or not a number; all ranks must pass the same value."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{quantity} is {value} at step {step}: stopped before the update; the weights are those of step {step - 1}. "
            f"Try a smaller optim.lr_tower, optim.lr_pooler or optim.lr_proxies, or look for broken images"
        )
