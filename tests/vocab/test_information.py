"""Bits: worked by hand, as scikit-learn counts them, and without what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from saga_ray.vocab.information import information, mutual_information

ONE = np.ones


def entropy(p: float) -> float:
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


@pytest.mark.parametrize(
    ("table", "bits"),
    [
        ([[50, 0], [0, 50]], 1.0),  # the difference is the truth
        ([[0, 7], [7, 0]], 1.0),  # or its opposite
        ([[25, 25], [25, 25]], 0.0),
        ([[30, 10], [60, 20]], 0.0),  # independent, whatever the margins
        ([[40, 0], [40, 0]], 0.0),  # all pairs of one kind
        ([[0, 0], [0, 0]], 0.0),
        ([[90, 10], [10, 90]], 1 - entropy(0.1)),  # a binary symmetric channel that errs one time in ten
        ([[50, 25], [0, 25]], 0.311278),  # H(truth) - H(truth | difference) = 1 - 3/4 H(1/3), a Z channel
    ],
)
def test_worked_tables(table: list[list[int]], bits: float) -> None:
    assert float(mutual_information(np.array(table))) == pytest.approx(bits, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_equal_to_scikit_learn(said: list[tuple[bool, bool]]) -> None:
    differs, truth = np.array(said).T
    table = np.array([[np.sum((differs == d) & (truth == t)) for t in (True, False)] for d in (True, False)])
    assert float(mutual_information(table)) == pytest.approx(mutual_info_score(differs, truth) / np.log(2), abs=1e-9)


def test_tables_may_be_stacked() -> None:
    tables = np.random.default_rng(0).integers(0, 9, (3, 4, 2, 2))
    one_by_one = [[float(mutual_information(table)) for table in row] for row in tables]
    np.testing.assert_allclose(mutual_information(tables), one_by_one)


def test_a_difference_that_is_the_truth_tells_one_bit() -> None:
    truth_P = np.arange(200) % 2 == 0
    found = information(2 * ~truth_P, 2 * ONE(200), truth_P)
    assert found.bits == pytest.approx(1.0, abs=0.01) and found.low > 0.95 and found.p < 0.001


def test_shuffled_truth_tells_nothing_on_average_and_answers_of_one_pair_count_once() -> None:
    """Eight answers that always agree are worth one: without pairs as units the bits below would be called certain."""
    rng = np.random.default_rng(1)
    truth_P = np.arange(60) % 2 == 0
    found = [information(8 * (rng.random(60) < 0.5), 8 * ONE(60), truth_P, seed=n) for n in range(60)]
    bits = np.array([each.bits for each in found])
    assert abs(bits.mean()) < 0.004  # the plug-in estimate alone would be 1 / (2 60 ln 2) = 0.012 too high
    ps = np.array([each.p for each in found])
    assert 0 <= (ps < 0.05).sum() <= 8 and 0.3 < ps.mean() < 0.7
    assert all(each.low == 0 for each in found if each.p > 0.2)


@pytest.mark.parametrize("error", [0.02, 0.2, 0.35])
def test_the_interval_holds_the_true_bits(error: float) -> None:
    rng = np.random.default_rng(2)
    truth_P = np.arange(150) % 2 == 0
    true_bits, inside, estimates = 1 - entropy(error), 0, []
    for seed in range(40):
        found = information((~truth_P ^ (rng.random(150) < error)).astype(int), ONE(150), truth_P, seed=seed)
        inside += found.low <= true_bits <= found.high
        estimates.append(found.bits)
    assert inside >= 35
    assert np.mean(estimates) == pytest.approx(true_bits, abs=0.02)


def test_nothing_heard_may_be_anything_and_one_thing_said_is_nothing() -> None:
    truth_P = np.arange(30) % 2 == 0
    silent = information(np.zeros(30), np.zeros(30), truth_P)
    assert (silent.bits, silent.low, silent.high, silent.p) == (0, 0, 1, 1)
    constant = information(np.zeros(30), ONE(30), truth_P)
    assert (constant.bits, constant.high, constant.p) == (0, 0, 1)
    few = information(np.arange(8) % 2, ONE(8), np.arange(8) % 2 == 0)
    assert (few.bits, few.high, few.p) == (0, 1, 1)


def test_pairs_without_an_answer_do_not_count_and_the_same_seed_gives_the_same() -> None:
    rng = np.random.default_rng(3)
    truth_P, yes_P = np.arange(80) % 2 == 0, rng.integers(0, 3, 80)
    num_P = np.where(np.arange(80) % 5 == 0, 0, 2)
    heard_P = num_P > 0
    assert information(yes_P * heard_P, num_P, truth_P) == information(yes_P[heard_P], num_P[heard_P], truth_P[heard_P])
