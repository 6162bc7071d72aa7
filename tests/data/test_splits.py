"""The rules that hold back validation classes and cut classes in halves."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from saga_ray.data.splits import carve_validation, first_half


@given(st.integers(2, 2000), st.floats(0.01, 0.99))
def test_every_class_goes_to_one_side_and_two_stay_for_training(num_classes, share):
    train, held = carve_validation(num_classes, share)
    assert sorted(train + held) == list(range(num_classes))
    assert len(train) >= 2
    assert len(held) == min(max(1, round(share * num_classes)), num_classes - 2)
    assert train == sorted(train) and held == sorted(held)


@given(st.integers(20, 2000))
def test_held_back_classes_are_spread_evenly(num_classes):
    _, held = carve_validation(num_classes, 0.2)
    gaps = {b - a for a, b in itertools.pairwise(held)}
    assert max(gaps) - min(gaps) <= 1


def test_a_fifth_is_every_fifth_class_beginning_with_the_third():
    assert carve_validation(100, 0.2)[1] == list(range(2, 100, 5))


def test_too_few_classes_leave_none_for_validation():
    assert carve_validation(2, 0.2) == ([0, 1], [])
    assert carve_validation(3, 0.2) == ([0, 2], [1])


def test_the_middle_class_of_an_odd_number_trains():
    assert (first_half(200), first_half(5)) == (100, 3)
