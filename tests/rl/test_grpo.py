from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saga_ray.rl.grpo import answer_weights, group_advantages, policy_loss_sum
from saga_ray.rl.rewards import verdict_rewards


def grpo_loss_sum(log_probs_SR: torch.Tensor, advantages_S: torch.Tensor, mask_SR: torch.Tensor) -> torch.Tensor:
    return policy_loss_sum(log_probs_SR, answer_weights(advantages_S, mask_SR))


rewards_of = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=4, max_size=4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1e6 + 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero_advantage(value: float, dtype: torch.dtype) -> None:
    rewards_PG = torch.full((3, 7), value, dtype=dtype)  # the mean of 0.1 is inexact, so a residue remains
    advantages_PG = group_advantages(rewards_PG, min_std=1e-6 * max(1.0, value))
    assert torch.equal(advantages_PG, torch.zeros(3, 7, dtype=dtype))


def test_a_group_worked_by_hand() -> None:
    # mean 1/4, population std sqrt(3)/4: one right answer of four.
    want = torch.tensor([[3.0, -1.0, -1.0, -1.0]]) / 3**0.5
    assert torch.allclose(group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])), want)


@given(st.lists(rewards_of, min_size=1, max_size=5))
def test_advantages_of_a_pair_depend_on_its_own_rewards_alone(rewards: list[list[float]]) -> None:
    rewards_PG = torch.tensor(rewards, dtype=torch.float64)
    together = group_advantages(rewards_PG)
    for pair in range(len(rewards)):
        assert torch.equal(together[pair : pair + 1], group_advantages(rewards_PG[pair : pair + 1]))
    assert together.sum(dim=1).abs().max() < 1e-9


@given(rewards_of, st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_advantages_ignore_scale_and_offset_of_rewards(rewards: list[float], scale: float, offset: float) -> None:
    rewards_PG = torch.tensor([rewards], dtype=torch.float64)
    assert torch.allclose(group_advantages(scale * rewards_PG + offset), group_advantages(rewards_PG), atol=1e-9)


def test_expected_gradient_points_along_the_gradient_of_the_expected_reward() -> None:
    """Exact enumeration of every group of three answers over four words; binary rewards.

    Standardising rescales a pair's gradient, by a number that can be worked out, and does not turn it.
    """
    torch.manual_seed(0)
    theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    reward_V = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    log_probs_V = theta.log_softmax(dim=0)
    (wanted,) = torch.autograd.grad((log_probs_V.exp() * reward_V).sum(), theta, retain_graph=True)

    expected = torch.zeros_like(theta)
    for group in product(range(4), repeat=3):
        words = torch.tensor(group)
        advantages_S = group_advantages(reward_V[words][None])[0]
        mask_SR = torch.ones(3, 1, dtype=torch.bool)
        loss = grpo_loss_sum(log_probs_V[words][:, None], advantages_S, mask_SR)
        (grad,) = torch.autograd.grad(loss, theta, retain_graph=True)
        expected -= log_probs_V[words].sum().exp().detach() * grad
    assert torch.allclose(expected / expected.norm(), wanted / wanted.norm(), atol=1e-12)

    p = float((log_probs_V.detach().exp() * reward_V).sum())
    scale = sum(
        c * p**k * (1 - p) ** (3 - k) * (k * ((3 - k) / k) ** 0.5 / p + (3 - k) * (k / (3 - k)) ** 0.5 / (1 - p))
        for k, c in ((1, 3), (2, 3))
    )
    assert float(expected.norm() / wanted.norm()) == pytest.approx(scale, rel=1e-10)


def test_padding_has_no_gradient_even_where_its_log_probability_is_infinite() -> None:
    log_probs_SR = torch.tensor([[-1.0, -2.0], [-3.0, -torch.inf]], requires_grad=True)
    mask_SR = torch.tensor([[True, True], [True, False]])
    loss = grpo_loss_sum(log_probs_SR, torch.tensor([2.0, -1.0]), mask_SR)
    loss.backward()
    assert loss.item() == 2 * 3 - 3
    assert torch.equal(log_probs_SR.grad, torch.tensor([[-2.0, -2.0], [1.0, 0.0]]))


def test_the_loss_is_a_sum_so_splitting_it_changes_nothing() -> None:
    log_probs_SR, advantages_S = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    mask_SR = torch.arange(5) < torch.tensor([5, 1, 3, 4, 2, 5])[:, None]
    whole = grpo_loss_sum(log_probs_SR, advantages_S, mask_SR)
    parts = sum(grpo_loss_sum(log_probs_SR[s], advantages_S[s], mask_SR[s]) for s in (slice(0, 2), slice(2, 6)))
    assert torch.allclose(whole, parts, rtol=1e-13)


def test_only_the_right_verdict_is_rewarded() -> None:
    verdicts_PG = torch.tensor([[1, 0, -1], [1, 0, -1]], dtype=torch.int8)
    rewards_PG = verdict_rewards(verdicts_PG, torch.tensor([True, False]))
    assert rewards_PG.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
