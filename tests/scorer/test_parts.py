"""Requests cut and joined: every answer is the one that its pair has alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import build_engine
from saga_ray.scorer.parts import join_results, kind, num_parts, split_request, tokens_of_pair
from saga_ray.scorer.wire import request_to_arrays, rounded_request
from saga_ray.types import ScoreOptions, ScoreRequest, ScoreResult
from tests.helpers.scoring import relative, small_request, small_run_config
from tests.helpers.small_mllm import small_answer

RIGHT = small_answer("hooked", "plain", "hooked", "plain", "yes")
WRONG = small_answer("hooked", "plain", "hooked", "plain", "no")


@pytest.fixture(scope="module")
def exact(folder: Path) -> ScoringEngine:
    return build_engine(small_run_config(folder, mllm__dtype="float64"))


def _requests() -> list[ScoreRequest]:
    """Of two ranks of one run, and of another run."""
    first = small_request(3, seed=0, micro_batch=3)
    second = replace(first, pairs=small_request(5).pairs[3:])
    return [first, second, small_request(2, seed=4, micro_batch=1)]


def _assert_close(one: ScoreResult, other: ScoreResult) -> None:
    assert one.texts_PG == other.texts_PG
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert tensor.shape == other.tensors()[name].shape, name
        if tensor.any():
            assert relative(tensor, other.tensors()[name]) < 1e-10, name


def _assert_equal_counts(one: ScoreResult, other: ScoreResult) -> None:
    for name in ("num_tokens", "malformed", "truncated", "zero_advantage_pairs", "path", "process"):
        assert one.counters[name] == other.counters[name], name


def test_requests_of_several_runs_scored_together_are_those_scored_alone(exact: ScoringEngine) -> None:
    requests = _requests()
    alone = [exact.score(request) for request in requests]
    assert any(bool(result.contributes_P.any()) for result in alone), "the case must not be empty"
    assert len({result.texts_PG[0] for result in alone}) > 1
    for one, other in zip(exact.score_together(requests), alone, strict=True):
        _assert_close(one, other)
        _assert_equal_counts(one, other)


def test_cut_answers_are_counted_per_request(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64", grpo__max_new_tokens=15))
    requests = _requests()
    alone = [engine.score(request) for request in requests]
    assert sum(float(result.counters["truncated"]) for result in alone) > 0
    for one, other in zip(engine.score_together(requests), alone, strict=True):
        _assert_equal_counts(one, other)


def test_given_answers_rewards_and_references_are_joined_as_well(exact: ScoringEngine) -> None:
    requests = []
    for request in _requests()[::2]:
        num = len(request.pairs)
        tokens = replace(request.tokens, tokens_NLTD=request.tokens.tokens_NLTD * 0.9)
        rewards_PG = torch.tensor([[1.0, 0.0]]).expand(num, 2)
        requests.append(replace(request, answers=((RIGHT, WRONG),) * num, rewards_PG=rewards_PG, reference=tokens))
    for one, other in zip(exact.score_together(requests), [exact.score(r) for r in requests], strict=True):
        assert one.reference_kl_P is not None and bool(one.token_grads_P2LTD.any())
        _assert_close(one, other)


def test_in_deterministic_mode_joined_requests_are_bit_equal(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, scorer__deterministic=True))
    requests = [replace(r, tokens=replace(r.tokens, tokens_NLTD=r.tokens.tokens_NLTD.float())) for r in _requests()]
    for one, other in zip(engine.score_together(requests), [engine.score(r) for r in requests], strict=True):
        assert one.texts_PG == other.texts_PG
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_a_joined_request_can_be_cut_again(exact: ScoringEngine) -> None:
    from saga_ray.scorer.parts import join_requests

    requests = _requests()
    joined = join_requests(requests)
    whole = exact.score(joined)
    _assert_close(whole, join_results([exact.score(part) for part in split_request(joined, 3)]))


def test_what_is_asked_differently_is_of_another_kind() -> None:
    base = small_request(2)
    others = [
        replace(base, options=ScoreOptions(attention=False)),
        replace(base, tokens=replace(base.tokens, grid_hw=(1, 4))),
        replace(base, answers=((RIGHT,),) * 2),
        replace(base, answers=((RIGHT, WRONG),) * 2),
        replace(base, reference=base.tokens),
        replace(base, tokens=replace(base.tokens, tokens_NLTD=base.tokens.tokens_NLTD.float())),
    ]
    assert len({kind(request) for request in [base, *others]}) == len(others) + 1
    assert kind(replace(base, seed=7, micro_batch=9)) == kind(base)


def test_a_part_holds_each_image_that_it_shows_once_and_no_other() -> None:
    request = small_request(4)  # shows images 0 1 4 2 7 3 2 (of 8): one of them twice
    (whole,) = split_request(request, 1)
    assert len(whole.tokens) == len({p for pair in request.pairs for p in (pair.first, pair.second)}) < 8
    for part in (whole, *split_request(request, 3)):
        assert len(part.tokens) == len({p for pair in part.pairs for p in (pair.first, pair.second)})
        for pair in part.pairs:
            there = request.pairs[pair.number]
            assert torch.equal(part.tokens.tokens_NLTD[pair.first], request.tokens.tokens_NLTD[there.first])
            assert torch.equal(part.tokens.tokens_NLTD[pair.second], request.tokens.tokens_NLTD[there.second])


def test_over_the_wire_every_image_goes_once_in_the_dtype_of_the_mllm() -> None:
    request = small_request(12)
    images = {p for pair in request.pairs for p in (pair.first, pair.second)}
    assert 2 * len(request.pairs) > len(images), "pairs must share images"
    (whole,) = split_request(request, 1)
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
        arrays = request_to_arrays(rounded_request(whole, dtype))
        (tokens,) = [array for name, array in arrays.items() if name.startswith("tokens_NLTD")]
        assert tokens.nbytes == len(images) * 4 * 4 * 64 * size
        assert sum(array.nbytes for array in arrays.values()) < tokens.nbytes + 2000


def test_the_number_of_parts_follows_tokens() -> None:
    assert num_parts(16, 100, budget=1600) == 1
    assert num_parts(16, 100, budget=1599) == 2
    assert num_parts(16, 100, budget=1) == 16, "a pair is never cut"
    assert num_parts(16, 100, budget=10**6, at_least=3) == 3
    assert num_parts(2, 100, budget=10**6, at_least=3) == 2
    assert num_parts(0, 100, budget=1) == 1


def test_the_tokens_of_a_pair_are_the_most_that_it_takes(exact: ScoringEngine) -> None:
    request = small_request(3)
    most = tokens_of_pair(request, exact.describe(), group_size=4)
    layout, _ = exact._layout(request.tokens.grid_hw)
    assert most == layout.positions_3C.shape[1] + 4 * exact.max_new_tokens
    result = exact.score(request)
    assert (result.num_tokens_PG.sum(dim=1) + layout.positions_3C.shape[1] <= most).all()
    assert tokens_of_pair(replace(request, answers=((RIGHT,),) * 3), exact.describe(), 4) < most
