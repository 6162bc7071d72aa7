from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from saga_ray.scorer.engine import MAX_LAYOUTS, ScoringEngine, prompt_hash
from saga_ray.scorer.identity import expected_identity
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.scorer.prompt import run_prompt
from saga_ray.types import ScoreOptions, VisualTokens
from tests.helpers.scoring import relative, small_request, small_run_config
from tests.helpers.small_mllm import small_answer

RIGHT = small_answer("hooked", "plain", "hooked", "plain", "yes")
WRONG = small_answer("hooked", "plain", "hooked", "plain", "no")


@pytest.fixture(scope="module")
def engine(folder: Path) -> ScoringEngine:
    return build_engine(small_run_config(folder))


def test_an_answer_earns_one_for_the_right_verdict_and_nothing_else(engine: ScoringEngine) -> None:
    group = (RIGHT, WRONG, RIGHT[:-1], "hm")
    result = engine.score(small_request(2, answers=(group, group)))  # pair 0 is of one class, pair 1 is not
    assert result.verdicts_PG.tolist() == [[1, 0, -1, -1]] * 2
    assert result.rewards_PG.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert result.well_formed_PG.tolist() == [[True, True, False, False]] * 2
    assert result.texts_PG == (group, group)
    assert result.counters["malformed"] == 4


def test_a_cut_answer_earns_nothing_and_is_counted(folder: Path) -> None:
    whole = build_engine(small_run_config(folder)).score(small_request())
    cut = build_engine(small_run_config(folder, grpo__max_new_tokens=6)).score(small_request())
    assert whole.counters["truncated"] < cut.counters["truncated"]
    ends = torch.tensor(build_engine(small_run_config(folder)).mllm.end_ids)
    unended = ~torch.isin(cut.token_ids_PGR, ends).any(dim=2)
    assert int(unended.sum()) == cut.counters["truncated"]
    assert not cut.rewards_PG[unended].any()
    assert not cut.well_formed_PG[unended].any()


def test_pairs_whose_answers_agree_contribute_nothing_but_keep_their_log_probs(engine: ScoringEngine) -> None:
    result = engine.score(small_request(2, answers=((RIGHT, RIGHT), (RIGHT, WRONG))))
    assert result.contributes_P.tolist() == [False, True]
    assert not result.token_grads_P2LTD[0].any()
    assert result.token_grads_P2LTD[1].any()
    assert (result.log_probs_PG < 0).all()
    assert result.counters["zero_advantage_pairs"] == 1


def test_a_request_in_which_all_answers_agree_skips_the_gradient(engine: ScoringEngine) -> None:
    result = engine.score(small_request(2, answers=((RIGHT,) * 2,) * 2))
    assert not result.token_grads_P2LTD.any()
    assert not result.contributes_P.any()


@pytest.mark.parametrize("settings", [{}, {"grpo__top_p": 0.8, "grpo__temperature": 0.6}], ids=str)
def test_the_sampler_and_the_scorer_agree_on_log_probabilities(folder: Path, settings: dict) -> None:
    """Temperature, nucleus, banned ids, positions and caches, all at once."""
    engine = build_engine(small_run_config(folder, mllm__dtype="float64", **settings))
    sampled = engine.score(small_request(4))
    ends = torch.tensor(engine.mllm.end_ids)
    ended = torch.isin(sampled.token_ids_PGR, ends).any(dim=2)
    given = engine.score(small_request(4, answers=sampled.texts_PG))
    same = ended & (given.num_tokens_PG == sampled.num_tokens_PG)  # texts may be cut into other tokens
    assert int(same.sum()) >= 4
    assert relative(given.log_probs_PG[same], sampled.log_probs_PG[same]) < 1e-10


def test_given_answers_equal_to_the_sampled_ones_give_the_same_gradient(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, mllm__dtype="float64"))
    sampled = engine.score(small_request(24))
    # Given answers are tokenised anew: those count whose tokens are the tokenizer's own.
    again = [
        [engine.mllm.tokenizer.encode(text, add_special_tokens=False) for text in texts] for texts in sampled.texts_PG
    ]
    written = [[[i for i in row if i >= 0][:-1] for row in rows] for rows in sampled.token_ids_PGR.tolist()]
    alike = [p for p in range(24) if again[p] == written[p] and sampled.contributes_P[p]]
    assert len(alike) >= 2
    given = engine.score(small_request(24, answers=sampled.texts_PG))
    assert torch.equal(given.rewards_PG[alike], sampled.rewards_PG[alike])
    assert relative(given.token_grads_P2LTD[alike], sampled.token_grads_P2LTD[alike]) < 1e-10
    assert given.log_probs_PG[alike].flatten().tolist() == pytest.approx(
        sampled.log_probs_PG[alike].flatten().tolist(), rel=1e-10
    )


def test_rewards_that_are_given_count_as_those_of_verdicts(engine: ScoringEngine) -> None:
    group = (RIGHT, WRONG, "neither", RIGHT)
    by_verdict = engine.score(small_request(1, answers=(group,)))
    by_reward = engine.score(small_request(1, answers=(group,), rewards_PG=torch.tensor([[1.0, 0.0, 0.0, 1.0]])))
    assert torch.equal(by_verdict.token_grads_P2LTD, by_reward.token_grads_P2LTD)


def test_an_empty_request_has_an_empty_result(engine: ScoringEngine) -> None:
    result = LocalScorer(engine).score(small_request(0))
    assert result.token_grads_P2LTD.shape == (0, 2, 4, 4, 64)
    assert result.attention_sum_P2T.shape == (0, 2, 4)
    assert result.rewards_PG.shape == (0, 4)


def test_result_shapes_are_those_of_the_types(engine: ScoringEngine) -> None:
    result = LocalScorer(engine).score(small_request(3, dtype=torch.float32))
    longest = int(result.num_tokens_PG.max())
    assert result.token_ids_PGR.shape == (3, 4, longest)
    assert result.token_grads_P2LTD.shape == (3, 2, 4, 4, 64)
    assert result.attention_sum_P2T.shape == (3, 2, 4)
    assert (result.verdicts_PG.dtype, result.attention_count_P2.dtype) == (torch.int8, torch.int64)
    assert result.token_grads_P2LTD.dtype == torch.float32
    assert torch.equal(result.num_tokens_PG, (result.token_ids_PGR >= 0).sum(dim=2))


def test_counters_say_what_ran_where_and_how_long(engine: ScoringEngine) -> None:
    counters = engine.score(small_request(3)).counters
    assert counters["process"] == f"{socket.gethostname()}:{os.getpid()}" == engine.describe()["process"]
    assert counters["path"] == "shared"
    assert all(counters[f"seconds/{stage}"] > 0 for stage in ("prefill", "sample", "gradient"))


def test_tokens_that_do_not_fit_or_are_not_finite_are_refused(engine: ScoringEngine) -> None:
    request = small_request(1)
    for tokens, grid, message in (
        (torch.zeros(8, 4, 4, 32), (2, 2), "do not fit"),
        (torch.zeros(8, 1, 4, 64), (2, 2), "do not fit"),
        (torch.zeros(8, 4, 4, 64), (2, 3), "do not fit"),
        (torch.full((8, 4, 4, 64), torch.nan), (2, 2), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.score(replace(request, tokens=VisualTokens(tokens, grid)))


@pytest.mark.parametrize("answers", [((RIGHT,),), ((RIGHT,), (RIGHT, WRONG)), ((), ())])
def test_given_answers_must_be_one_equal_group_per_pair(engine: ScoringEngine, answers: tuple) -> None:
    with pytest.raises(ValueError, match="one group per pair"):
        engine.score(small_request(2, answers=answers))


def test_thread_counts_are_fixed_while_scoring_and_given_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine(small_run_config(folder, scorer__deterministic=True, scorer__threads=2))
    before, seen = torch.get_num_threads(), []
    whole = engine._score
    monkeypatch.setattr(engine, "_score", lambda request: (seen.append(torch.get_num_threads()), whole(request))[1])
    engine.score(small_request(1))
    assert seen == [2]
    assert torch.get_num_threads() == before


def test_images_of_many_sizes_do_not_pile_up(folder: Path) -> None:
    engine = build_engine(small_run_config(folder, grpo__max_new_tokens=2))
    for height in range(1, MAX_LAYOUTS + 4):
        tokens = VisualTokens(torch.randn(8, 4, 2 * height, 64), (height, 2))
        engine.score(replace(small_request(1, options=ScoreOptions(False, False)), tokens=tokens))
    assert len(engine._layouts) == MAX_LAYOUTS


def test_the_prompt_bounds_the_answers_that_the_config_would_allow(folder: Path) -> None:
    assert build_engine(small_run_config(folder, grpo__max_new_tokens=1000)).max_new_tokens == 40
    assert build_engine(small_run_config(folder, grpo__max_new_tokens=10)).max_new_tokens == 10
    assert run_prompt(small_run_config(folder)).max_new_tokens == 40


def test_the_generic_variant_asks_something_else(folder: Path) -> None:
    structured = build_engine(small_run_config(folder))
    generic = build_engine(small_run_config(folder, prompt__variant="generic"))
    assert structured.describe()["prompt"] != generic.describe()["prompt"]
    assert structured.describe()["weights"] == generic.describe()["weights"]
    assert structured.score(small_request(2)).texts_PG != generic.score(small_request(2)).texts_PG


def test_the_prompts_hash_covers_what_answers_are_drawn_from(folder: Path) -> None:
    config = small_run_config(folder)
    prompt, texts = run_prompt(config), ("a", "b", "c")
    name, words = next(iter(prompt.attributes.items()))
    assert words is not None
    others = [
        replace(prompt, attributes={**prompt.attributes, name: words[:-1]}),
        replace(prompt, attributes={**prompt.attributes, name: None}),
        replace(prompt, answers="template"),
        replace(prompt, value_tokens=9),
    ]
    found = [prompt_hash(each, texts, 40) for each in (prompt, *others)] + [prompt_hash(prompt, texts, 39)]
    assert len(set(found)) == len(found)
    assert build_engine(config).describe()["prompt"] == expected_identity(config)["prompt"]


@pytest.mark.parametrize("path", ["shared", "naive"])
def test_the_callers_grad_mode_does_not_matter(folder: Path, path: Literal["shared", "naive"]) -> None:
    base = build_engine(small_run_config(folder))
    engine = ScoringEngine(base.mllm, base.prompt, base.config, path=path)
    request = small_request(1, answers=((RIGHT, WRONG),))
    with torch.no_grad():
        without = engine.score(request)
    assert without.token_grads_P2LTD.any()
    assert torch.equal(without.token_grads_P2LTD, engine.score(request).token_grads_P2LTD)
    assert not without.token_grads_P2LTD.requires_grad


def test_logits_are_float32_at_least(folder: Path) -> None:
    for dtype, wanted in (("bfloat16", torch.float32), ("float32", torch.float32), ("float64", torch.float64)):
        mllm = build_engine(small_run_config(folder, mllm__dtype=dtype)).mllm
        hidden = torch.randn(2, 64).to(mllm.dtype)
        logits = mllm.logits(hidden, 2.0)
        assert logits.dtype == wanted
        assert torch.equal(logits.argmax(dim=1), mllm.logits(hidden, 1.0).argmax(dim=1))
        assert torch.allclose(2 * logits, mllm.logits(hidden, 1.0)), "the temperature divides logits"
