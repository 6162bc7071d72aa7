"""Random numbers that are a function of a key, so that order, batches and the number of processes do not matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64, Steele et al. 2014), elementwise and alike everywhere."""
    with np.errstate(over="ignore"):
        z = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def keyed_uniforms(key: Sequence[int], numbers: np.ndarray, num_columns: int) -> np.ndarray:
    """(numbers, num_columns) uniforms in [0, 1), a function of key, number and column alone."""
    state = np.uint64(0)
    for part in key:
        state = mix(state ^ np.uint64(part))
    rows = mix(state ^ mix(np.asarray(numbers, np.uint64)))
    cells = mix(rows[:, None] ^ mix(np.arange(num_columns, dtype=np.uint64))[None, :])
    return (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53
