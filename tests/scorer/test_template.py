"""The laws of the scorer, and every signal, with template answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_ray.mllm.answers import parse_answer
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.scorer.wire import (
    request_from_arrays,
    request_to_arrays,
    result_from_arrays,
    result_to_arrays,
    rounded_request,
    rounded_result,
)
from saga_ray.types import ScoreOptions, ScoreRequest, VisualTokens
from tests.helpers.scoring import assert_gradient_is_the_derivative, relative, small_request, small_run_config
from tests.helpers.small_mllm import small_answer

TEMPLATE = {"prompt__answers": "template"}
TAUGHT = (small_answer("hooked", "plain", "straight", "barred", "no"),)
SIGNALS = ["sampled", "truncated", "expected", "lesson", "reference"]


def engine_of(kind: str, folder: Path, **more: Any) -> ScoringEngine:
    settings: dict[str, Any] = {"mllm__dtype": "float64", **TEMPLATE, **more}
    if kind == "expected":
        settings["grpo__reward"] = "expected"
    if kind == "truncated":
        settings |= {"grpo__top_p": 0.8, "grpo__temperature": 0.7}
    return build_engine(small_run_config(folder, **settings))


def request_of(kind: str, num_pairs: int = 6) -> ScoreRequest:
    if kind == "lesson":
        options = ScoreOptions(attention=False, lesson=True)
        return small_request(num_pairs, options=options, answers=(TAUGHT,) * num_pairs)
    request = small_request(num_pairs)
    if kind != "reference":
        return request
    noise = torch.randn(8, 4, 4, 64, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return replace(request, reference=VisualTokens(request.tokens.tokens_NLTD + 0.3 * noise, request.tokens.grid_hw))


@pytest.mark.parametrize("kind", SIGNALS)
def test_every_signal_equals_its_naive_twin(folder: Path, kind: str) -> None:
    engine, request = engine_of(kind, folder), request_of(kind)
    twin = ScoringEngine(engine.mllm, engine.prompt, engine.config, path="naive")
    name = "reference_grads_P2LTD" if kind == "reference" else "token_grads_P2LTD"
    shared, naive = engine.score(request), twin.score(request)
    ours, theirs = getattr(shared, name), getattr(naive, name)
    active = shared.contributes_P if kind != "reference" else torch.ones(6, dtype=torch.bool)
    assert int(active.sum()) >= 3
    assert (ours[active].flatten(2).abs().amax(dim=2) > 0).all(), "both pictures of every pair get a gradient"
    assert relative(ours, theirs) < 1e-10
    assert shared.loss_P.tolist() == pytest.approx(naive.loss_P.tolist(), rel=1e-10)


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_pair_does_not_depend_on_what_shares_its_request(folder: Path, kind: str) -> None:
    request, rows = request_of(kind), [5, 0, 3]
    alone = replace(
        request,
        pairs=tuple(request.pairs[row] for row in rows),
        answers=None if request.answers is None else tuple(request.answers[row] for row in rows),
    )
    engine = engine_of(kind, folder)
    together, apart = engine.score(request).tensors(), engine.score(alone).tensors()
    for name, part in apart.items():
        whole = together[name][rows]
        if name == "token_ids_PGR":
            whole = whole[:, :, : part.shape[2]]
        assert torch.allclose(whole.double(), part.double(), rtol=1e-9, atol=1e-12), name


def test_deterministic_results_are_bit_equal_whatever_shares_the_request(folder: Path) -> None:
    engine = engine_of("sampled", folder, mllm__dtype="float32", scorer__deterministic=True)
    request = small_request(6)
    whole, part = engine.score(request), engine.score(replace(request, pairs=request.pairs[2:5]))
    assert whole.texts_PG[2:5] == part.texts_PG
    assert torch.equal(whole.token_grads_P2LTD[2:5], part.token_grads_P2LTD)
    assert torch.equal(whole.log_probs_PG[2:5], part.log_probs_PG)


def test_local_equals_the_round_trip_over_the_wire(folder: Path) -> None:
    engine = engine_of("sampled", folder, mllm__dtype="bfloat16", scorer__deterministic=True)
    request, dtype = small_request(3, dtype=torch.float32), engine.mllm.dtype
    local = LocalScorer(engine).score(request)
    sent = request_from_arrays(request_to_arrays(rounded_request(request, dtype)))
    back = result_from_arrays(result_to_arrays(rounded_result(engine.score(sent), dtype)))
    remote = rounded_result(back, torch.float32)
    assert remote.texts_PG == local.texts_PG
    assert all(torch.equal(tensor, remote.tensors()[name]) for name, tensor in local.tensors().items())


def test_all_answers_can_be_read_and_only_what_was_drawn_counts(folder: Path) -> None:
    engine = engine_of("sampled", folder)
    result = engine.score(small_request(8))
    assert result.well_formed_PG.all()
    assert result.num_tokens_PG.unique().tolist() == [5], "four values and a verdict, each decided by one token"
    assert result.counters["num_tokens"] == 8 * 4 * 5
    assert result.counters["num_fed"] == int((result.token_ids_PGR >= 0).sum()) - 8 * 4 * 5
    for text in (text for texts in result.texts_PG for text in texts):
        assert len(parse_answer(text, "same").spans) == 4
    assert (result.attention_count_P2[result.contributes_P] > 0).all()


def test_the_gradient_is_the_derivative_of_the_summed_loss(folder: Path) -> None:
    engine = engine_of("sampled", folder)
    answers = tuple(small_answer(bill, "plain", "hooked", wing, "yes") for bill in ("hooked", "straight") for wing in ("barred", "plain"))  # fmt: skip
    request = small_request(1, answers=(answers,), rewards_PG=torch.tensor([[1.0, 0.0, 0.0, 0.5]]))
    assert_gradient_is_the_derivative(engine, request)


def test_a_bound_that_would_cut_answers_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"grpo\.max_new_tokens: 9 is less than the \d+ tokens of the longest template"
    ):
        build_engine(small_run_config(folder, grpo__max_new_tokens=9, **TEMPLATE))


def test_requests_that_are_scored_together_come_back_as_alone(folder: Path) -> None:
    engine = engine_of("sampled", folder)
    requests = [small_request(2), small_request(3, seed=1, micro_batch=8)]
    for joined, alone in zip(engine.score_together(requests), map(engine.score, requests), strict=True):
        assert joined.texts_PG == alone.texts_PG
        assert torch.equal(joined.token_ids_PGR, alone.token_ids_PGR)
        assert [joined.counters[name] for name in ("num_tokens", "num_fed", "truncated")] == [
            alone.counters[name] for name in ("num_tokens", "num_fed", "truncated")
        ]
        assert relative(joined.token_grads_P2LTD, alone.token_grads_P2LTD) < 1e-10
