"""Intervals for means over queries that are correlated within their class and repeated over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 4000
_ELEMENTS_AT_ONCE = 2**22


def bootstrap_means(sums_SC: np.ndarray, num_queries_C: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Means of a score over resampled query classes crossed with resampled seeds.

    Queries of one class stand or fall together, so classes are drawn with replacement, not queries; the gallery stays.
    With w_c, v_s the multiplicities of a draw: mean = sum_s v_s (sum_c w_c sums_sc) / (sum_s v_s sum_c w_c num_c).
    The draws are fixed: rows with equally many classes see the same draws of classes, and rows with the same seeds the same
    draws of seeds, so the difference of two rows' means is a paired bootstrap.

    Args:
        sums_SC: sum of the score over each class's queries, for each seed.
        num_queries_C: queries of each class.
        seeds: of the runs; with a single one the interval says nothing about seeds, and with two or three it
            still understates how much they differ.

    Returns:
        (NUM_RESAMPLES,) means.
    """
    num_seeds, num_classes = sums_SC.shape
    of_classes = np.random.default_rng([0, num_classes])
    of_seeds = np.random.default_rng([1, *seeds])
    means = []
    at_once = max(1, _ELEMENTS_AT_ONCE // num_classes)
    for start in range(0, NUM_RESAMPLES, at_once):
        size = min(at_once, NUM_RESAMPLES - start)
        weight_BC = of_classes.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=size)
        weight_BS = of_seeds.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size)
        mean_BS = (weight_BC @ sums_SC.T) / (weight_BC @ num_queries_C)[:, None]
        means.append((mean_BS * weight_BS).sum(axis=1) / num_seeds)
    return np.concatenate(means)


def interval95(means: np.ndarray) -> tuple[float, float]:
    """The middle 95 percent of bootstrap means."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def two_sided_p(differences: np.ndarray) -> float:
    """Probability of a difference at least as far from zero, if there were none: twice the smaller tail of the bootstrap.

    p = 2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (1 + B), at most 1. The added ones (Davison and Hinkley, Bootstrap Methods and
    their Application, 1997, section 4.2) keep it above 0: B draws cannot show less than 2 / (1 + B).
    """
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + len(differences)))


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, so that any of them is wrong with the chance that one alone would have.

    In ascending order p_(i) becomes max_{j <= i} min(1, (m - j + 1) p_(j)) (Holm, 1979).
    """
    corrected, highest = [0.0] * len(ps), 0.0
    for place, number in enumerate(sorted(range(len(ps)), key=lambda number: ps[number])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[number]))
        corrected[number] = highest
    return corrected
