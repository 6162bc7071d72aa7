"""GRPO and its kin against loops and against exact enumeration of a tiny vocabulary."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saga_ray.rl.grpo import answer_weights, expected_weights, group_advantages, loss_units, policy_loss_sum
from saga_ray.rl.reference import reference_weights

NORMALISATIONS = ("dapo", "grpo", "dr-grpo", "rloo")
groups = st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=4)


class TinyPolicy:
    """Answers of one or two words: the first of three (the last ends the answer), then one of two."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
        self.second = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        self.answers = [(0, 0), (0, 1), (1, 0), (1, 1), (2,)]

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.first, self.second]

    def log_probs_SR(self, answers: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.first.log_softmax(0), self.second.log_softmax(1)
        rows = [torch.stack([first[a[0]], second[a[0], a[1]] if len(a) > 1 else first.new_zeros(())]) for a in answers]
        return torch.stack(rows), torch.tensor([[True, len(a) > 1] for a in answers])

    def probabilities(self) -> torch.Tensor:
        return self.log_probs_SR(self.answers)[0].sum(dim=1).exp()


REWARD = torch.tensor([1.0, 0.0, 0.25, 1.0, 0.0], dtype=torch.float64)


def loss_by_loops(
    log_probs: list[list[list[torch.Tensor]]], rewards: list[list[float]], normalisation: str
) -> torch.Tensor:
    """The papers' formulas, word by word: per pair, answer and token."""
    total, num_tokens, num_answers = torch.zeros((), dtype=torch.float64), 0, 0
    for answers, of_pair in zip(log_probs, rewards, strict=True):
        mean = sum(of_pair) / len(of_pair)
        std = (sum((r - mean) ** 2 for r in of_pair) / len(of_pair)) ** 0.5
        num_answers += len(answers)
        for g, tokens in enumerate(answers):
            num_tokens += len(tokens)
            others = [r for h, r in enumerate(of_pair) if h != g]
            advantage = {
                "dapo": (of_pair[g] - mean) / std if std > 1e-6 else 0.0,
                "grpo": (of_pair[g] - mean) / std if std > 1e-6 else 0.0,
                "dr-grpo": of_pair[g] - mean,
                "rloo": of_pair[g] - sum(others) / len(others),
            }[normalisation]
            of_answer = sum(advantage * token for token in tokens)
            total = total - (of_answer / len(tokens) if normalisation == "grpo" else of_answer)
    return total / (num_tokens if normalisation == "dapo" else num_answers)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_weights_and_units_are_the_papers_formulas(normalisation: str) -> None:
    lengths = torch.tensor([[1, 2, 5], [3, 3, 1], [2, 1, 4]])
    rewards_PG = torch.tensor([[1.0, 0.0, 0.5], [0.1, 0.1, 0.1], [0.0, 0.0, 1.0]], dtype=torch.float64)
    log_probs_SR = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask_SR = torch.arange(5) < lengths.view(-1, 1)
    advantages_PG = group_advantages(rewards_PG, normalisation=normalisation)
    weights_SR = answer_weights(advantages_PG.flatten(), mask_SR, normalisation)
    ours = policy_loss_sum(log_probs_SR, weights_SR) / loss_units(lengths, normalisation).sum()
    rows = [[list(log_probs_SR[3 * p + g][: lengths[p, g]]) for g in range(3)] for p in range(3)]
    assert float(ours) == pytest.approx(float(loss_by_loops(rows, rewards_PG.tolist(), normalisation)), rel=1e-12)


def expected_gradient(policy: TinyPolicy, normalisation: str, group_size: int) -> list[torch.Tensor]:
    """Of minus the loss, over every group of answers, each with its probability."""
    probability_V = policy.probabilities().detach()
    total = torch.zeros((), dtype=torch.float64)
    for group in product(range(5), repeat=group_size):
        rewards_PG = REWARD[list(group)][None]
        log_probs_SR, mask_SR = policy.log_probs_SR([policy.answers[word] for word in group])
        advantages_PG = group_advantages(rewards_PG, normalisation=normalisation)
        weights_SR = answer_weights(advantages_PG.flatten(), mask_SR, normalisation)
        units = loss_units(mask_SR.sum(dim=1)[None], normalisation).sum()
        total = total - probability_V[list(group)].prod() * policy_loss_sum(log_probs_SR, weights_SR) / units
    return list(torch.autograd.grad(total, policy.parameters))


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize(("normalisation", "unbiased"), [("rloo", True), ("dr-grpo", True), ("dapo", False), ("grpo", False)])  # fmt: skip
def test_which_normalisations_estimate_the_gradient_of_the_expected_reward(
    normalisation: str, unbiased: bool, group_size: int
) -> None:
    policy = TinyPolicy(1)
    exact = torch.autograd.grad((policy.probabilities() * REWARD).sum(), policy.parameters)
    share = (group_size - 1) / group_size if normalisation == "dr-grpo" else 1.0
    found = expected_gradient(policy, normalisation, group_size)
    agrees = all(torch.allclose(a, share * b, atol=1e-12) for a, b in zip(found, exact, strict=True))
    assert agrees == unbiased
    cosine = sum(float((a * b).sum()) for a, b in zip(found, exact, strict=True))
    assert cosine > 0, "biased, yet uphill"


def expected_reward_gradient(policy: TinyPolicy, normalisation: str, group_size: int) -> tuple[list, list, list]:
    """Exact enumeration of groups of answers of two words, the second of which is the verdict, right if it is word 1.

    Returns:
        The mean over groups with expected weights, the same with the written verdicts' rewards, each times the spread that was
        divided out (the expected one); and the gradient of the expected reward.
    """
    log_begin, log_verdict = policy.first[:2].log_softmax(0), policy.second.log_softmax(1)
    right = log_verdict[:, 1].exp()
    exact = torch.autograd.grad((log_begin.exp() * right).sum(), policy.parameters, retain_graph=True)
    places, mask_SR = torch.ones(group_size, dtype=torch.int64), torch.ones(group_size, 2) > 0
    expected, sampled = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for group in product(range(2), repeat=group_size):
        words = list(group)
        rewards_PG = right[words].detach()[None]
        mean = rewards_PG.mean()
        spread = (mean * (1 - mean)).sqrt() if normalisation in ("dapo", "grpo") else 1.0
        weights_SR, _ = expected_weights(rewards_PG, places, mask_SR, normalisation=normalisation)
        probability = log_begin.detach().exp()[words].prod() / group_size
        log_probs_SR = torch.stack([log_begin[words], log_verdict[words, 1]], dim=1)
        expected = expected - probability * policy_loss_sum(log_probs_SR, weights_SR * spread)
        share = group_size / (group_size - 1) if normalisation == "rloo" else 1.0
        share /= 2 if normalisation == "grpo" else 1  # words of an answer
        for verdicts in product(range(2), repeat=group_size):
            log_written = log_verdict[words, list(verdicts)]
            found = torch.tensor([verdicts], dtype=torch.float64)
            advantages_S = ((found - found.mean()) * share)[0]  # with the expected spread divided out
            both = probability * log_written.detach().exp().prod()
            written_SR = torch.stack([log_begin[words], log_written], dim=1)
            sampled = sampled - both * policy_loss_sum(written_SR, answer_weights(advantages_S, mask_SR))
    grads = [torch.autograd.grad(total, policy.parameters, retain_graph=True) for total in (expected, sampled)]
    return list(grads[0]), list(grads[1]), list(exact)


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_expected_rewards_estimate_the_same_gradient(normalisation: str, group_size: int) -> None:
    """Verdicts averaged out: proportional to the gradient of the expected reward as a whole, with the sampled one's force."""
    expected, sampled, exact = expected_reward_gradient(TinyPolicy(2), normalisation, group_size)
    share = 1.0 if normalisation == "rloo" else (group_size - 1) / group_size
    share /= 2 if normalisation == "grpo" else 1  # words of an answer
    for found, of_sampled, whole in zip(expected, sampled, exact, strict=True):
        assert torch.allclose(found, share * whole, atol=1e-12)
        assert torch.allclose(found, of_sampled, atol=1e-12)


@given(groups, st.permutations(range(4)), st.sampled_from(NORMALISATIONS), st.randoms(use_true_random=False))
def test_permuting_pairs_or_answers_permutes_advantages(groups: list, order: list, normalisation: str, rng) -> None:  # type: ignore[no-untyped-def]
    rewards_PG = torch.tensor(groups, dtype=torch.float64)
    pairs = rng.sample(range(len(groups)), len(groups))
    found = group_advantages(rewards_PG, normalisation=normalisation)
    again = group_advantages(rewards_PG[pairs][:, list(order)], normalisation=normalisation)
    assert torch.allclose(again, found[pairs][:, list(order)], atol=1e-12)
    assert found.sum(dim=1).abs().max() < 1e-9


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_groups_that_agree_get_exactly_zero_and_a_group_of_one_has_no_baseline(
    normalisation: str, value: float
) -> None:
    for size in (1, 2, 7):
        rewards_PG = torch.full((2, size), value, dtype=torch.float64)
        assert not group_advantages(rewards_PG, normalisation=normalisation).any()
    nearly = torch.tensor([[0.5, 0.5 + 1e-4, 0.5]], dtype=torch.float64)
    assert not group_advantages(nearly, min_std=1e-3, normalisation=normalisation).any()
    assert group_advantages(nearly, min_std=1e-6, normalisation=normalisation).all()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_weights_and_units_are_sums_so_splitting_pairs_changes_nothing(normalisation: str) -> None:
    lengths = torch.tensor([[1, 4], [2, 2], [5, 3]])
    rewards_PG = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.0]], dtype=torch.float64)
    mask_SR = torch.arange(5) < lengths.view(-1, 1)

    def of(pairs: slice) -> tuple[torch.Tensor, torch.Tensor]:
        advantages_PG = group_advantages(rewards_PG[pairs], normalisation=normalisation)
        rows = mask_SR.view(3, 2, 5)[pairs].flatten(0, 1)
        return answer_weights(advantages_PG.flatten(), rows, normalisation), loss_units(lengths[pairs], normalisation)

    weights_SR, units_P = of(slice(0, 3))
    parts = [of(slice(0, 1)), of(slice(1, 3))]
    assert torch.equal(weights_SR, torch.cat([weights for weights, _ in parts]))
    assert torch.equal(units_P, torch.cat([units for _, units in parts]))


# KL from a reference


def kl_by_tokens(policy: TinyPolicy, reference: TinyPolicy) -> torch.Tensor:
    """KL of the first word, and of the second given the first; probabilities of what stands before are not differentiated."""
    first, second = policy.first.log_softmax(0), policy.second.log_softmax(1)
    first_ref, second_ref = reference.first.detach().log_softmax(0), reference.second.detach().log_softmax(1)
    of_second = (second.exp() * (second - second_ref)).sum(dim=1)
    return (first.exp() * (first - first_ref)).sum() + (first[:2].exp().detach() * of_second).sum()


@pytest.mark.parametrize("form", ["k2", "k3", "k1-in-reward"])
def test_the_gradient_of_every_form_is_that_of_the_exact_kl(form: str) -> None:
    policy, reference = TinyPolicy(3), TinyPolicy(4)
    probability_V = policy.probabilities().detach()
    total, logged = torch.zeros((), dtype=torch.float64), 0.0
    for group in product(range(5), repeat=2):
        answers = [policy.answers[word] for word in group]
        log_probs_SR, mask_SR = policy.log_probs_SR(answers)
        apart_SR = torch.where(mask_SR, log_probs_SR - reference.log_probs_SR(answers)[0], 0.0).detach()
        weights_SR, values_SR = reference_weights(apart_SR, mask_SR, 1, form)
        probability = probability_V[list(group)].prod()
        total = total + probability * policy_loss_sum(log_probs_SR, weights_SR) / 2
        logged += float(probability * values_SR.sum() / 2)
        assert form != "k3" or (values_SR >= 0).all()
    found = torch.autograd.grad(total, policy.parameters)
    log_ratio = (
        policy.log_probs_SR(policy.answers)[0].sum(1) - reference.log_probs_SR(policy.answers)[0].sum(1).detach()
    )
    whole = (policy.probabilities() * log_ratio).sum()
    exact = torch.autograd.grad(whole if form == "k1-in-reward" else kl_by_tokens(policy, reference), policy.parameters)
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    if form != "k2":
        assert logged == pytest.approx(whole.item(), rel=1e-12), "the logged value has the KL as its mean"


def test_k3_times_the_ratio_has_the_gradient_of_k2() -> None:
    log_probs = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    others = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratio, apart = (log_probs - log_probs.detach()).exp(), log_probs - others
    (literal,) = torch.autograd.grad((ratio * ((-apart).exp() - 1 + apart)).sum(), log_probs)
    drawn_SR = torch.ones(2, 25) > 0
    weights_SR, _ = reference_weights(apart.detach().view(2, 25), drawn_SR, 1, "k3")
    assert torch.allclose(literal, -weights_SR.flatten(), atol=1e-12)
