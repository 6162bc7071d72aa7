"""How many bits a written difference tells about the truth, without the bits that chance alone gives.

Answers about one pair of pictures stand or fall together, so pairs are permuted and resampled, never single answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_PAIRS = 20
"""Of fewer pairs nothing is claimed."""
NUM_PERMUTATIONS = 2000
NUM_RESAMPLES = 1000
_ELEMENTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Information:
    """Bits that one yes-or-no tells about another."""

    bits: float
    """Mutual information less the mean that shuffled truth gives; a little below 0 where there is none."""
    low: float
    high: float
    """95 % interval over pairs, from 0 on."""
    p: float
    """Share of shufflings with at least as many bits."""


def mutual_information(counts_22: np.ndarray) -> np.ndarray:
    """Bits of mutual information in tables of counts.

    I = sum_ij p_ij log2(p_ij / (p_i. p_.j)), empty cells give 0 (Cover and Thomas, Elements of Information Theory, 2.3).

    Args:
        counts_22: (..., 2, 2), any weights of at least 0; an empty table gives 0.

    Returns:
        (...), from 0 to 1.
    """
    counts = np.asarray(counts_22, np.float64)
    total = counts.sum(axis=(-2, -1), keepdims=True)
    p = counts / np.where(total > 0, total, 1.0)
    independent = p.sum(axis=-1, keepdims=True) * p.sum(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / independent), 0.0)
    return terms.sum(axis=(-2, -1)).clip(0.0)


def information(yes_P: np.ndarray, num_P: np.ndarray, truth_P: np.ndarray, *, seed: int = 0) -> Information:
    """Bits that the answers about pairs tell about the pairs' truth.

    The plug-in estimate is too high, by about 1 / (2 P ln 2) bits for independent answers and by more for answers of one pair,
    which agree; what it gives for shuffled truth is taken off. The interval is the middle 95 % of estimates from pairs drawn
    with replacement, less the same; estimates from draws are higher once more, so the interval errs upwards.

    With fewer than MIN_PAIRS pairs, or pairs of one kind only, anything is possible: 0 bits, with an interval from 0 to 1.

    Args:
        yes_P: answers of each pair that say yes.
        num_P: answers of each pair that say anything.
        truth_P: bool, of each pair.
    """
    heard_P = num_P > 0
    yes_P, num_P, truth_P = yes_P[heard_P].astype(float), num_P[heard_P].astype(float), truth_P[heard_P]
    if len(yes_P) < MIN_PAIRS or truth_P.all() or not truth_P.any():
        return Information(0.0, 0.0, 1.0, 1.0)
    if yes_P.sum() in (0, num_P.sum()):  # one thing is always said
        return Information(0.0, 0.0, 0.0, 1.0)
    shuffled = stats.permutation_test(
        (truth_P.astype(float),),
        _bits_of_truth(yes_P, num_P),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=NUM_PERMUTATIONS,
        batch=max(1, _ELEMENTS_AT_ONCE // len(yes_P)),
        alternative="greater",
        rng=np.random.default_rng([seed, 0]),
    )
    bias = float(np.mean(shuffled.null_distribution))
    drawn = stats.bootstrap(
        (np.arange(len(yes_P)),),
        _bits_of_draws(yes_P, num_P, truth_P.astype(float)),
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _ELEMENTS_AT_ONCE // len(yes_P)),
        method="percentile",
        rng=np.random.default_rng([seed, 1]),
    ).confidence_interval
    low, high = (max(0.0, float(end) - bias) for end in (drawn.low, drawn.high))
    return Information(float(shuffled.statistic) - bias, low, high, float(shuffled.pvalue))


def _tables(yes: np.ndarray, num: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(..., 2, 2) counts of answers (rows: yes, no) by truth (columns: true, false), summed over the last axis."""
    no = num - yes
    rows = [
        np.stack([(each * truth).sum(axis=-1), (each * (1 - truth)).sum(axis=-1)], axis=-1)
        for each in np.broadcast_arrays(yes, no)
    ]
    return np.stack(rows, axis=-2)


def _bits_of_truth(yes_P: np.ndarray, num_P: np.ndarray) -> Callable[..., np.ndarray]:
    def bits(truth: np.ndarray, axis: int = -1) -> np.ndarray:
        return mutual_information(_tables(yes_P, num_P, np.moveaxis(truth, axis, -1)))

    return bits


def _bits_of_draws(yes_P: np.ndarray, num_P: np.ndarray, truth_P: np.ndarray) -> Callable[..., np.ndarray]:
    def bits(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = np.moveaxis(chosen, axis, -1)
        return mutual_information(_tables(yes_P[chosen], num_P[chosen], truth_P[chosen]))

    return bits
