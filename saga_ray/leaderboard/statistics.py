"""Intervals for means over queries that are correlated within their class, in runs that are repeated over a few seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 4000
_ELEMENTS_AT_ONCE = 2**22


def bootstrap_means(sums_SC: np.ndarray, num_queries_C: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Means of a score over resampled query classes, crossed with what the seeds leave open about the mean over all seeds.

    Queries of one class stand or fall together, so classes are drawn with replacement, not queries; the gallery stays.
    With w_c the multiplicities of a draw, a seed has m_s = sum_c w_c sums_sc / sum_c w_c num_c, and the draw is

        mean_s m_s + sd_s(m_s) / sqrt(S) * t,    t from Student's distribution with S - 1 degrees of freedom,

    the usual interval for a mean of few, about normal numbers whose variance is not known either. To resample the seeds
    themselves would say too little: of three equal signs none can ever cross 0, though chance gives them one time in four.
    The draws are fixed: equally many classes see the same draws of classes. For a difference of rows with equal seeds pass
    the differences of their sums, so that it is paired over classes and seeds.

    Args:
        sums_SC: sum of the score over each class's queries, for each seed.
        num_queries_C: queries of each class.
        seeds: of the runs, for the draws of t; a single seed says nothing of others, and its draws are over classes alone.

    Returns:
        (NUM_RESAMPLES,) means.
    """
    num_seeds, num_classes = sums_SC.shape
    of_classes = np.random.default_rng([0, num_classes])
    means = []
    at_once = max(1, _ELEMENTS_AT_ONCE // num_classes)
    for start in range(0, NUM_RESAMPLES, at_once):
        size = min(at_once, NUM_RESAMPLES - start)
        weight_BC = of_classes.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=size)
        means.append((weight_BC @ sums_SC.T) / (weight_BC @ num_queries_C)[:, None])
    mean_BS = np.concatenate(means)
    if num_seeds == 1:
        return mean_BS[:, 0]
    error_B = mean_BS.std(axis=1, ddof=1) / np.sqrt(num_seeds)
    return mean_BS.mean(axis=1) + error_B * _student_draws(seeds)


def _student_draws(seeds: Sequence[int]) -> np.ndarray:
    """Student's t with as many degrees of freedom as there are seeds, less one: even quantiles in an order drawn at random."""
    from scipy.stats import t

    quantiles = (np.arange(NUM_RESAMPLES) + 0.5) / NUM_RESAMPLES
    return t.ppf(np.random.default_rng([1, *seeds]).permutation(quantiles), len(seeds) - 1)


def interval95(means: np.ndarray, least: float = 0.0) -> tuple[float, float]:
    """The middle 95 percent of bootstrap means of shares; of their differences with `least=-1`, as far as these can go."""
    low, high = np.clip(np.quantile(means, [0.025, 0.975]), least, 1.0)
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
