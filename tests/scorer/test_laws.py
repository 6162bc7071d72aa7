"""The five laws of the scorer."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_ray.configure import with_override
from saga_ray.mllm.head import MAX_LOGITS
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.scorer.prompt import run_prompt
from saga_ray.scorer.wire import (
    request_from_arrays,
    request_to_arrays,
    result_from_arrays,
    result_to_arrays,
    rounded_request,
    rounded_result,
)
from saga_ray.types import ScoreRequest, ScoreResult
from tests.helpers.scoring import assert_gradient_is_the_derivative, relative, small_request, small_run_config
from tests.helpers.small_mllm import small_answer

RESULT_TENSORS = (
    "token_ids_PGR", "num_tokens_PG", "log_probs_PG", "rewards_PG", "advantages_PG", "well_formed_PG", "verdicts_PG",
    "token_grads_P2LTD", "attention_sum_P2T", "attention_count_P2",
)  # fmt: skip
GIVEN = (
    small_answer("hooked", "plain", "hooked", "barred", "yes"),
    small_answer("straight", "plain", "hooked", "plain", "no"),
    '{"same":"no"}',
    "neither",
)


def twin_of(engine: ScoringEngine) -> ScoringEngine:
    return ScoringEngine(engine.mllm, engine.prompt, engine.config, path="naive")


def picked(result: ScoreResult, rows: list[int]) -> dict[str, Any]:
    out = {name: getattr(result, name)[rows] for name in RESULT_TENSORS}
    longest = int(out["num_tokens_PG"].max())
    out["token_ids_PGR"] = out["token_ids_PGR"][:, :, :longest]
    return out


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in RESULT_TENSORS:
        assert torch.equal(a[name], b[name]), name


def subset(request: ScoreRequest, rows: list[int]) -> ScoreRequest:
    return replace(request, pairs=tuple(request.pairs[row] for row in rows))


# 1. Exact


@pytest.mark.parametrize(
    "settings", [{}, {"grpo__top_p": 0.8, "grpo__temperature": 0.7}, {"scorer__deterministic": True}], ids=str
)
def test_token_gradient_equals_the_naive_twin_to_1e_10_in_float64(folder: Path, settings: dict[str, Any]) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64", **settings))
    request = small_request(8)
    shared, naive = engine.score(request), twin_of(engine).score(request)
    assert (shared.counters["path"], naive.counters["path"]) == ("shared", "naive")
    assert int(shared.contributes_P.sum()) >= 3
    for pair in shared.contributes_P.nonzero()[:, 0].tolist():
        for image in range(2):
            for level in range(4):
                want = naive.token_grads_P2LTD[pair, image, level]
                assert want.abs().amax(dim=1).min() > 0, "every token row of every level takes part"
                assert relative(shared.token_grads_P2LTD[pair, image, level], want) < 1e-10


def test_token_gradient_equals_the_naive_twin_to_1e_5_on_the_stock_model_in_float32(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float32"))
    request = small_request(8, dtype=torch.float32)
    shared, naive = engine.score(request), twin_of(engine).score(request)
    active = shared.contributes_P
    assert int(active.sum()) >= 3
    assert relative(shared.token_grads_P2LTD[active], naive.token_grads_P2LTD[active]) < 1e-5


def test_gradient_of_given_answers_is_exact_too(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64", grpo__top_p=0.9))
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    request = small_request(2, answers=(GIVEN, GIVEN[::-1]), rewards_PG=rewards)
    shared, naive = engine.score(request), twin_of(engine).score(request)
    assert relative(shared.token_grads_P2LTD, naive.token_grads_P2LTD) < 1e-10
    assert relative(shared.log_probs_PG, naive.log_probs_PG) < 1e-12


def test_gradient_is_the_derivative_of_the_summed_loss(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64"))
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    request = small_request(1, answers=(GIVEN,), rewards_PG=rewards)
    assert_gradient_is_the_derivative(engine, request)


def test_answers_in_parts_of_a_group_and_logits_in_slices_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64"))
    whole = engine.score(small_request())
    monkeypatch.setattr("saga_ray.mllm.gradients.MAX_ROWS", 50)
    monkeypatch.setitem(MAX_LOGITS, "cpu", 7 * 320)
    parts = engine.score(small_request())
    assert relative(parts.token_grads_P2LTD, whole.token_grads_P2LTD) < 1e-12
    assert relative(parts.attention_sum_P2T, whole.attention_sum_P2T) < 1e-12


def test_slots_and_the_loop_give_one_result(folder: Path) -> None:
    loop, slots = (
        build_engine(small_run_config(folder, mllm__dtype="float64", scorer__sampler=way)) for way in ("loop", "slots")
    )
    for num_pairs in (3, 6, 2):  # more slots are made, and some stay idle
        want, got = loop.score(small_request(num_pairs)), slots.score(small_request(num_pairs))
        assert torch.equal(got.token_ids_PGR, want.token_ids_PGR)
        assert relative(got.token_grads_P2LTD, want.token_grads_P2LTD) < 1e-12


def test_engines_of_one_model_have_slots_in_turn(folder: Path) -> None:
    config = small_run_config(folder, mllm__dtype="float64", scorer__sampler="slots")
    first = build_engine(config)
    other = ScoringEngine(first.mllm, run_prompt(config), with_override(config, "grpo.temperature", 0.5))
    elsewhere = build_engine(config)
    elsewhere.score(small_request(1))
    want = first.score(small_request(2))
    slots = weakref.ref(first._sample._made[1])
    other.score(small_request(1))
    gc.collect()
    assert slots() is None and other._sample._made is not None and elsewhere._sample._made is not None
    assert_equal(picked(first.score(small_request(2)), [0, 1]), picked(want, [0, 1]))


# 2. Batch-invariant


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_in_float64_a_pair_does_not_depend_on_what_shares_its_request(folder: Path, chunk: int) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64", scorer__pairs_per_chunk=chunk))
    request = small_request(7)
    together = engine.score(request)
    for rows in ([0], [5, 2], [6, 5, 4, 3, 2, 1, 0]):
        alone, want = picked(engine.score(subset(request, rows)), list(range(len(rows)))), picked(together, rows)
        assert torch.equal(alone["token_ids_PGR"], want["token_ids_PGR"])
        assert torch.equal(alone["rewards_PG"], want["rewards_PG"])
        for name in ("token_grads_P2LTD", "log_probs_PG", "attention_sum_P2T"):
            assert torch.allclose(alone[name], want[name], rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_results_are_bit_equal_whatever_shares_the_request(folder: Path, dtype: str) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype=dtype, scorer__deterministic=True))
    request = small_request(7)
    together = engine.score(request)
    assert bool(together.contributes_P.any())
    for rows in ([3], [5, 2, 0], [6, 5, 4, 3, 2, 1, 0]):
        assert_equal(picked(engine.score(subset(request, rows)), list(range(len(rows)))), picked(together, rows))


def test_another_engine_gives_the_same_bits(folder: Path) -> None:
    config = small_run_config(folder, mllm__dtype="float32", scorer__deterministic=True)
    first, second = (build_engine(config).score(small_request(4)) for _ in range(2))
    assert_equal(picked(first, [0, 1, 2, 3]), picked(second, [0, 1, 2, 3]))


def test_answers_are_keyed_by_seed_micro_batch_and_pair(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64"))
    request = small_request(2)
    ids = engine.score(request).texts_PG
    assert engine.score(replace(request, seed=1)).texts_PG != ids
    assert engine.score(replace(request, micro_batch=4)).texts_PG != ids
    renumbered = replace(request, pairs=tuple(replace(pair, number=pair.number + 9) for pair in request.pairs))
    assert engine.score(renumbered).texts_PG != ids
    assert engine.score(request).texts_PG == ids


# 3. Local == remote


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("given", [False, True])
def test_local_scorer_equals_the_round_trip_over_the_wire(folder: Path, dtype: str, given: bool) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype=dtype, scorer__deterministic=True))
    fields: dict[str, Any] = {}
    if given:
        fields = {"answers": (GIVEN,) * 3, "rewards_PG": torch.rand(3, 4)}
    request = small_request(3, dtype=torch.float32, **fields)
    local = LocalScorer(engine).score(request)

    mllm_dtype = engine.mllm.dtype
    sent = {name: array.copy() for name, array in request_to_arrays(rounded_request(request, mllm_dtype)).items()}
    for array in sent.values():
        array.flags.writeable = False  # as in Ray's object store
    answer = result_to_arrays(rounded_result(engine.score(request_from_arrays(sent)), mllm_dtype))
    remote = rounded_result(result_from_arrays(answer), torch.float32)
    assert remote.token_grads_P2LTD.dtype == local.token_grads_P2LTD.dtype == torch.float32
    assert_equal(picked(local, [0, 1, 2]), picked(remote, [0, 1, 2]))
    assert local.texts_PG == remote.texts_PG
    assert set(local.counters) == set(remote.counters)


# 4. Frozen


def test_scoring_changes_nothing_in_the_mllm_and_leaves_no_gradient(folder: Path) -> None:
    engine = build_engine(small_run_config(folder))
    model = engine.mllm.model
    before = {name: x.clone() for name, x in (*model.named_parameters(), *model.named_buffers())}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    request = small_request(6, dtype=torch.float32)
    request.tokens.tokens_NLTD.requires_grad_()
    engine.score(request)
    twin_of(engine).score(request)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        assert x.grad is None, name
        assert torch.equal(x, before[name]), name
    assert request.tokens.tokens_NLTD.grad is None, "gradients are returned, never written"
    assert model.model.rope_deltas is None, "no position of one request may reach the next"
    assert not model.training


def test_requests_leave_no_tensor_behind(folder: Path) -> None:
    import gc

    engine = build_engine(small_run_config(folder))

    def living() -> int:
        engine.score(small_request(3))
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    living()
    counts = [living() for _ in range(3)]
    assert counts[0] == counts[-1]


# 5. Sums, not means


def test_splitting_a_request_leaves_all_sums_equal(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64"))
    request = small_request(7)
    whole = engine.score(request)
    parts = [engine.score(subset(request, rows)) for rows in ([0, 1, 2], [3], [4, 5, 6])]
    for name in ("token_grads_P2LTD", "attention_sum_P2T", "log_probs_PG"):
        want, got = getattr(whole, name), torch.cat([getattr(part, name) for part in parts])
        assert relative(got, want) < 1e-10, name
    assert whole.counters["num_tokens"] == sum(part.counters["num_tokens"] for part in parts)
    assert torch.equal(whole.attention_count_P2, torch.cat([part.attention_count_P2 for part in parts]))
