from __future__ import annotations

import math

import pytest
import torch

from saga_ray.bench.signals import QUICK, SIGNALS, bench_signals, spread


def test_length_noise_and_cosine_of_gradients_with_a_known_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_X = torch.zeros(400, dtype=torch.float64)
    mean_X[0] = 3.0
    grads_NX = mean_X + 0.5 * torch.randn(300, 400, generator=generator, dtype=torch.float64)
    length, noise, cosine = spread(grads_NX)
    assert length == pytest.approx(3.0, rel=0.02)
    assert noise == pytest.approx(0.5 * 20, rel=0.02)
    assert cosine == pytest.approx(3 / math.hypot(3, 10), abs=0.03)


def test_pure_noise_has_no_length_and_equal_gradients_no_noise() -> None:
    grads_NX = torch.randn(50, 1000, generator=torch.Generator().manual_seed(1))
    length, noise, cosine = spread(grads_NX)
    assert length < 0.1 * noise and abs(cosine) < 0.02
    assert spread(torch.ones(4, 9)) == pytest.approx((3.0, 0.0, 1.0), abs=1e-9)


def test_every_signal_is_measured() -> None:
    names = ["rloo", "expected, template", "reference k1-in-reward"]
    found = bench_signals(QUICK, signals={name: SIGNALS[name] for name in names})["signals"]
    assert list(found) == names
    assert all(each["noise"] > 0 for each in found.values() if each["contributing"] > 0)
    assert found["expected, template"]["tokens_per_answer"] == 21
