"""Signals beside GRPO: expected reward, lessons, and the KL from a reference encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import expected_weights, policy_loss_sum
from saga_ray.scorer import differentiate
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.judge import Judge
from saga_ray.scorer.local import build_engine
from saga_ray.scorer.signals import lesson
from saga_ray.scorer.wire import request_from_arrays, request_to_arrays, result_from_arrays, result_to_arrays
from saga_ray.types import ScoreOptions, ScoreRequest, VisualTokens
from tests.helpers.scoring import assert_gradient_is_the_derivative, relative, small_request, small_run_config
from tests.helpers.small_mllm import small_answer

TAUGHT = (small_answer("hooked", "plain", "straight", "barred", "no"),)


def request_of(kind: str, num_pairs: int = 4) -> ScoreRequest:
    """A request that asks for one of the signals."""
    if kind == "lesson":
        options = ScoreOptions(attention=False, lesson=True)
        return small_request(num_pairs, options=options, answers=(TAUGHT,) * num_pairs)
    request = small_request(num_pairs)
    if kind == "reference":
        generator = torch.Generator().manual_seed(9)
        moved = request.tokens.tokens_NLTD + 0.3 * torch.randn(
            request.tokens.tokens_NLTD.shape, generator=generator, dtype=torch.float64
        )
        return replace(request, reference=VisualTokens(moved, request.tokens.grid_hw))
    return request


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, ScoringEngine]:
    plain = build_engine(small_run_config(folder, mllm__dtype="float64"))
    config = small_run_config(folder, mllm__dtype="float64", grpo__reward="expected")
    return {
        "reference": plain,
        "lesson": plain,
        "expected": ScoringEngine(plain.mllm, plain.prompt, config),
    }


@pytest.mark.parametrize("kind", ["expected", "lesson", "reference"])
def test_every_signal_equals_its_naive_twin_in_float64(engines: dict[str, ScoringEngine], kind: str) -> None:
    engine, request = engines[kind], request_of(kind)
    twin = ScoringEngine(engine.mllm, engine.prompt, engine.config, path="naive")
    name = "reference_grads_P2LTD" if kind == "reference" else "token_grads_P2LTD"
    ours, theirs = (getattr(each.score(request), name) for each in (engine, twin))
    assert (ours.flatten(2).abs().amax(dim=2) > 0).all(), "both pictures of every pair get a gradient"
    assert relative(ours, theirs) < 1e-10


@pytest.mark.parametrize("kind", ["expected", "lesson", "reference"])
def test_a_pairs_signal_does_not_depend_on_what_shares_its_request(
    engines: dict[str, ScoringEngine], kind: str
) -> None:
    request, rows = request_of(kind), [2, 0]
    alone = replace(
        request,
        pairs=tuple(request.pairs[row] for row in rows),
        answers=None if request.answers is None else tuple(request.answers[row] for row in rows),
    )
    together, apart = engines[kind].score(request).tensors(), engines[kind].score(alone).tensors()
    for name, part in apart.items():
        if name != "token_ids_PGR":
            assert torch.allclose(together[name][rows].double(), part.double(), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("kind", ["expected", "lesson", "reference"])
def test_every_signal_survives_the_wire(engines: dict[str, ScoringEngine], kind: str) -> None:
    request = request_of(kind, 2)
    again = request_from_arrays(request_to_arrays(request))
    assert again.options == request.options and again.answers == request.answers
    assert (again.reference is None) == (request.reference is None)
    result = engines[kind].score(again)
    back = result_from_arrays(result_to_arrays(result)).tensors()
    assert back.keys() == result.tensors().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in result.tensors().items())


@pytest.mark.parametrize("answers", ["free", "template"])
@pytest.mark.parametrize("normalisation", ["grpo", "dr-grpo", "rloo"])
@pytest.mark.parametrize("kind", ["sampled", "expected"])
def test_every_normalisation_equals_its_naive_twin(
    engines: dict[str, ScoringEngine], kind: str, normalisation: str, answers: str
) -> None:
    plain = engines["expected" if kind == "expected" else "reference"]
    grpo = plain.config.grpo.model_copy(update={"normalisation": normalisation})
    config, prompt = plain.config.model_copy(update={"grpo": grpo}), replace(plain.prompt, answers=answers)
    shared, naive = (ScoringEngine(plain.mllm, prompt, config, path=path) for path in ("shared", "naive"))
    request = small_request(4)
    ours, theirs = shared.score(request), naive.score(request)
    assert ours.contributes_P.any()
    assert relative(ours.token_grads_P2LTD, theirs.token_grads_P2LTD) < 1e-10
    if kind == "sampled":
        want = ours.rewards_PG - ours.rewards_PG.mean(dim=1, keepdim=True)
        if normalisation != "grpo":
            assert torch.allclose(ours.advantages_PG, want * (4 / 3 if normalisation == "rloo" else 1.0), atol=1e-12)


@pytest.mark.parametrize("form", ["k3", "k1-in-reward"])
def test_other_forms_of_the_reference_kl_equal_their_naive_twin(engines: dict[str, ScoringEngine], form: str) -> None:
    plain, request = engines["reference"], request_of("reference")
    config = plain.config.model_copy(update={"grpo": plain.config.grpo.model_copy(update={"reference_kl": form})})
    shared, naive = (ScoringEngine(plain.mllm, plain.prompt, config, path=path) for path in ("shared", "naive"))
    ours, theirs, k2 = shared.score(request), naive.score(request), plain.score(request)
    assert relative(ours.reference_grads_P2LTD, theirs.reference_grads_P2LTD) < 1e-10
    same = relative(ours.reference_grads_P2LTD, k2.reference_grads_P2LTD) < 1e-12
    assert same == (form == "k3")
    assert not torch.allclose(ours.reference_kl_P, k2.reference_kl_P)
    assert form != "k3" or (ours.reference_kl_P > 0).all()


@pytest.mark.parametrize(("form", "num_passes"), [("k2", 2), ("k3", 2), ("k1-in-reward", 3)])
def test_the_pass_of_a_reference_kls_gradient_gives_its_log_probabilities_as_well(
    engines: dict[str, ScoringEngine], form: str, num_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass without a graph for the reference, and one with; a whole answer's KL must be known before the second."""
    plain, request = engines["reference"], request_of("reference")
    config = plain.config.model_copy(update={"grpo": plain.config.grpo.model_copy(update={"reference_kl": form})})
    engine = ScoringEngine(plain.mllm, plain.prompt, config)
    passes = []
    whole = differentiate.score_shared
    monkeypatch.setattr(differentiate, "score_shared", lambda *a, **k: passes.append(k) or whole(*a, **k))
    engine.score(replace(request, reference=None))
    without = len(passes)
    engine.score(request)
    assert len(passes) - 2 * without == num_passes


def test_attention_that_is_not_asked_for_is_not_looked_for(
    engines: dict[str, ScoringEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = engines["reference"], []
    found = Judge.attention_rows
    monkeypatch.setattr(Judge, "attention_rows", lambda *a: asked.append(a) or found(*a))
    quiet, loud = (engine.score(small_request(2, options=ScoreOptions(attention=on))) for on in (False, True))
    assert len(asked) == -(-2 // engine.config.scorer.pairs_per_chunk)
    assert torch.equal(quiet.token_grads_P2LTD, loud.token_grads_P2LTD)
    assert loud.attention_count_P2.any() and not quiet.attention_count_P2.any()


@pytest.mark.parametrize("variant", ["structured", "compact", "generic"])
@pytest.mark.parametrize("answers", ["free", "template"])
def test_an_expected_reward_can_be_had_of_every_prompt(
    engines: dict[str, ScoringEngine], variant: str, answers: str
) -> None:
    """The same answer with either verdict: both have the right one's probability, which the written one does not change."""
    plain = engines["expected"]
    prompt = replace(plain.prompt, variant=variant, answers=answers, value_tokens=4)
    said = {
        "structured": small_answer("hooked", "plain", "straight", "barred", "yes"),
        "compact": '{"1":{"bill":"hooked","wing":"plain"},"2":{"bill":"straight","wing":"barred"},"same":"yes"}',
        "generic": '{"differences":"wing","same":"yes"}',
    }[variant]
    request = replace(small_request(2), answers=((said, said.replace('"yes"', '"no"')),) * 2)
    found = ScoringEngine(plain.mllm, prompt, plain.config).score(request)
    assert found.rewards_PG[:, 0] == pytest.approx(found.rewards_PG[:, 1].tolist(), rel=1e-9)
    assert ((found.rewards_PG > 0) & (found.rewards_PG < 1)).all() and found.contributes_P.all()
    if answers == "template":  # yes or no, nothing else: the pairs are of one class, and not
        turned = tuple(replace(pair, same_class=not pair.same_class) for pair in request.pairs)
        other = ScoringEngine(plain.mllm, prompt, plain.config).score(replace(request, pairs=turned))
        assert (found.rewards_PG + other.rewards_PG)[:, 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_a_lesson_weighs_an_answer_up_to_its_last_value() -> None:
    ids_SR = torch.tensor([[7, 1, 7, 2, 8, 9], [7, 3, 8, 9, -1, -1], [8, 9, -1, -1, -1, -1]])
    zeros_S = torch.zeros(3, dtype=torch.float64)
    completions = Completions(ids_SR, torch.zeros_like(ids_SR), zeros_S, zeros_S == 0)
    signal = lesson(completions, 3, [[1, 3], [1], []])
    assert signal.weights_SR.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6]
    assert signal.contributes_P.tolist() == [True, True, False]


def test_a_lesson_is_counted_in_words_about_the_birds(engines: dict[str, ScoringEngine]) -> None:
    result = engines["lesson"].score(request_of("lesson"))
    # hooked, plain, barred are one token each, straight is two.
    assert result.num_taught_P.tolist() == [5] * 4
    assert (result.loss_P > 0).all() and result.contributes_P.all()
    # Differences and verdict are in its log-probability, but not in the loss.
    assert (-result.log_probs_PG.sum(dim=1) > result.loss_P).all()


def test_a_lesson_without_answers_is_refused_in_a_sentence(engines: dict[str, ScoringEngine]) -> None:
    with pytest.raises(ValueError, match="answers: missing; a lesson needs the answers"):
        engines["lesson"].score(small_request(2, options=ScoreOptions(lesson=True)))


def test_a_lesson_is_the_derivative_of_its_loss(engines: dict[str, ScoringEngine]) -> None:
    assert_gradient_is_the_derivative(engines["lesson"], request_of("lesson", 1), lambda moved: float(moved.loss_P[0]))


def test_a_reference_that_is_the_policy_itself_pulls_nowhere(engines: dict[str, ScoringEngine]) -> None:
    request = small_request(3)
    result = engines["reference"].score(replace(request, reference=request.tokens))
    assert result.reference_kl_P is not None and result.reference_grads_P2LTD is not None
    assert float(result.reference_kl_P.abs().max()) < 1e-18
    assert float(result.reference_grads_P2LTD.abs().max()) < 1e-8
    assert engines["reference"].score(request).reference_kl_P is None


def test_the_reference_leaves_answers_rewards_and_the_grpo_gradient_as_they_are(
    engines: dict[str, ScoringEngine],
) -> None:
    with_one, without = (
        engines["reference"].score(request_of("reference")),
        engines["reference"].score(small_request(4)),
    )
    assert with_one.texts_PG == without.texts_PG
    assert torch.allclose(with_one.token_grads_P2LTD, without.token_grads_P2LTD, rtol=1e-10, atol=1e-14)


def test_expected_rewards_are_the_probabilities_of_the_right_verdict(engines: dict[str, ScoringEngine]) -> None:
    """Whichever verdict was written; and "yes" and "no", right of pairs of one class and of two, share what is likely."""
    written = small_answer("hooked", "plain", "hooked", "barred", "yes")
    other = written.replace('"yes"', '"no"')
    request = replace(small_request(2), answers=((written, other),) * 2)
    found = engines["expected"].score(request)
    assert found.rewards_PG[:, 0] == pytest.approx(found.rewards_PG[:, 1].tolist(), rel=1e-9)
    assert ((found.rewards_PG > 0) & (found.rewards_PG < 1)).all()
    other_class = tuple(replace(pair, same_class=not pair.same_class) for pair in request.pairs)
    turned = engines["expected"].score(replace(request, pairs=other_class))
    both_P = found.rewards_PG[:, 0] + turned.rewards_PG[:, 0]
    assert ((both_P > found.rewards_PG[:, 0]) & (both_P <= 1 + 1e-9)).all()
    assert found.contributes_P.all(), "equal expected rewards still carry the verdict's own gradient"
    assert found.token_grads_P2LTD.flatten(1).abs().amax(dim=1).min() > 0


def test_expected_weights_average_to_a_share_of_the_gradient_of_the_expected_reward() -> None:
    """Exact enumeration: three beginnings, two verdicts, groups of two; times the spread that was divided out.

    All of it comes out (G - 1) / G times, as with any baseline that contains the answer itself.
    """
    torch.manual_seed(0)
    begin = torch.randn(3, dtype=torch.float64, requires_grad=True)
    verdict = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)  # column 1 is right
    log_begin, log_verdict = begin.log_softmax(0), verdict.log_softmax(1)
    right = log_verdict[:, 1].exp()
    exact = torch.autograd.grad((log_begin.exp() * right).sum(), [begin, verdict], retain_graph=True)
    found = [torch.zeros_like(begin), torch.zeros_like(verdict)]
    group_size = 2
    for group in product(range(3), repeat=group_size):
        words = torch.tensor(group)
        rewards_PG = right[words].detach()[None]
        mean = rewards_PG.mean()
        spread = (mean * (1 - mean)).sqrt()
        weights_SR, _ = expected_weights(rewards_PG, torch.ones(group_size, dtype=torch.int64), torch.ones(2, 2) > 0)
        log_probs_SR = torch.stack([log_begin[words], log_verdict[words, 1]], dim=1)
        loss = policy_loss_sum(log_probs_SR, weights_SR * spread / group_size)
        probability = log_begin[words].detach().sum().exp()
        for total, grad in zip(found, torch.autograd.grad(loss, [begin, verdict], retain_graph=True), strict=True):
            total -= probability * grad
    for total, whole in zip(found, exact, strict=True):
        assert torch.allclose(total, whole * (group_size - 1) / group_size, atol=1e-12)


def test_expected_weights_have_the_mean_of_sampled_ones_and_less_spread() -> None:
    """Over the verdicts of given beginnings, the spread fixed: weights on the beginning agree on average."""
    right = torch.tensor([[0.9, 0.4, 0.6]], dtype=torch.float64)
    mean = right.mean()
    spread = (mean * (1 - mean)).sqrt()
    _, advantages_PG = expected_weights(right, torch.ones(3, dtype=torch.int64), torch.ones(3, 2) > 0)
    sampled = torch.zeros(1, 3, dtype=torch.float64)
    for verdicts in product((0.0, 1.0), repeat=3):
        rewards = torch.tensor([verdicts], dtype=torch.float64)
        probability = torch.where(rewards > 0, right, 1 - right).prod()
        sampled += probability * (rewards - rewards.mean()) / spread
    assert torch.allclose(advantages_PG, sampled, atol=1e-12)


def test_answers_without_a_verdict_earn_nothing_and_teach_by_contrast() -> None:
    rewards_PG = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    mask_SR = torch.tensor([[True, True, True], [True, True, False]])
    weights_SR, advantages_PG = expected_weights(rewards_PG, torch.tensor([1, -1]), mask_SR)
    spread = (0.25 * 0.75) ** 0.5
    assert torch.allclose(weights_SR[0], torch.tensor([0.25, 0.5 / 2, 0.0], dtype=torch.float64) / spread)
    assert torch.allclose(weights_SR[1], torch.tensor([-0.25, -0.25, 0.0], dtype=torch.float64) / spread)
    assert float(advantages_PG.sum()) == pytest.approx(0.0)


def test_certain_groups_get_weight_exactly_zero() -> None:
    for value in (0.0, 1.0):
        weights_SR, _ = expected_weights(
            torch.full((1, 4), value, dtype=torch.float64), torch.ones(4, dtype=torch.int64), torch.ones(4, 3) > 0
        )
        assert not weights_SR.any()
