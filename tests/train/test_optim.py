from itertools import pairwise

import pytest

from saga_ray.configure import resolve
from saga_ray.train.optim import learning_rate_factor, num_steps


def test_schedule_warms_up_linearly_and_falls_as_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, 20, 0.2) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[12] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(factors[4:]))
    assert 0 < factors[-1] < 0.02


def test_schedule_needs_no_warm_up() -> None:
    assert learning_rate_factor(0, 5, 0.0) == 1.0
    assert learning_rate_factor(0, 1, 0.05) == 1.0


def test_steps_follow_epochs_and_micro_batches() -> None:
    base = {"data.classes_per_batch": 8, "data.images_per_class": 4, "optim.epochs": 2}
    assert num_steps(resolve("demo", overrides=base), 320) == 20
    assert num_steps(resolve("demo", overrides=base | {"grpo.max_micro_batches": 4}), 320) == 5
    assert num_steps(resolve("demo", overrides=base | {"grpo.max_micro_batches": 4, "grpo.refill": True}), 320) == 20
    assert num_steps(resolve("demo", overrides=base | {"optim.steps": 7}), 320) == 7
    assert num_steps(resolve("demo", method="pretrained", overrides={"optim.steps": 7}), 320) == 0
