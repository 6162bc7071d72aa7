from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st

from saga_ray.config import MLLMConfig
from saga_ray.mllm.attention import DecodeMemory, NewRows
from saga_ray.mllm.decoding import SharedDecodeMemory, decode_memory
from saga_ray.mllm.frozen import FrozenMLLM
from saga_ray.mllm.loading import load_mllm
from saga_ray.mllm.sampling import Completions, draw, given, nucleus_size, restrict, sample, uniform_numbers


@pytest.fixture(scope="module")
def mllm(folder: Path) -> FrozenMLLM:
    return load_mllm(MLLMConfig(path=str(folder), dtype="float64"))


def write(
    mllm: FrozenMLLM, texts: tuple[str, str, str], temperature: float = 1.0, top_p: float = 1.0, **uniform: int
) -> Completions:
    layout = mllm.layout(texts, (2, 2))
    tokens = torch.randn(3, 2, 4, 4, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prefix = mllm.prefill(tokens, layout, mllm.constant_prefix(layout))
    numbers = uniform_numbers(uniform.get("seed", 0), 0, range(3), 4, uniform.get("num_tokens", 30))
    return sample(mllm, layout, prefix, numbers, temperature=temperature, top_p=top_p)


TEXTS = (
    "<|im_start|>user\nbill wing<|vision_start|>",
    "<|vision_end|>and<|vision_start|>",
    "<|vision_end|>json<|im_end|>\n",
)


@given_values(st.integers(0, 2**70), st.integers(0, 2**20), st.integers(0, 100), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=30)
def test_a_uniform_number_depends_on_its_own_key_alone(
    seed: int, batch: int, pair: int, answers: int, tokens: int
) -> None:
    alone = uniform_numbers(seed, batch, [pair], answers, tokens)
    among = uniform_numbers(seed, batch, [pair + 1, pair], answers + 1, tokens + 3)
    assert np.array_equal(alone[0], among[1, :answers, :tokens])


def test_uniform_numbers_of_different_keys_are_unrelated() -> None:
    keys = [(0, 0), (1, 0), (0, 1)]
    flat = np.stack([uniform_numbers(seed, batch, range(20), 8, 25).ravel() for seed, batch in keys])
    assert len(np.unique(flat)) == flat.size
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.06
    assert flat.min() >= 0
    assert flat.max() < 1


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0]], dtype=torch.float64)
    num = 20000
    uniform = torch.from_numpy((np.arange(num) + 0.5) / num)  # every quantile once
    ids, log_probs, _ = draw(logits.expand(num, -1), uniform, 1.0)
    share = torch.bincount(ids, minlength=5) / num
    assert torch.allclose(share.double(), logits[0].softmax(0), atol=1.0 / num)
    assert torch.allclose(log_probs, logits[0].log_softmax(0)[ids])


@given_values(
    st.lists(st.sampled_from([-torch.inf, -30.0, 0.0, 0.1, 5.0]), min_size=2, max_size=6),
    st.sampled_from([0.0, 1e-300, 0.5, 1.0 - 2.0**-53]),
    st.sampled_from([1.0, 0.95, 0.3, 1e-9]),
)
def test_an_impossible_token_is_never_drawn(logits: list[float], uniform: float, top_p: float) -> None:
    row = torch.tensor([[0.0, *logits, -torch.inf]], dtype=torch.float64)
    ids, log_probs, size = draw(row, torch.tensor([uniform], dtype=torch.float64), top_p)
    assert torch.isfinite(row[0, ids]).all()
    assert torch.isfinite(log_probs).all()
    if top_p < 1:
        assert torch.isfinite(restrict(row, size)[0, ids]).all()


def test_the_nucleus_is_the_smallest_set_that_holds_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    assert nucleus_size(logits, 0.55).tolist() == [2, 1, 3]  # row 3: the edge is a tie, both stay
    assert nucleus_size(logits, 0.95).tolist() == [3, 3, 3]
    assert nucleus_size(logits, 1e-9).tolist() == [1, 1, 1]
    assert nucleus_size(logits, 1.0).tolist() == [3, 3, 3]


def test_a_token_drawn_at_the_edge_stays_possible_when_rounding_moves_it_out() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0 - 1e-7, -1.0]], dtype=torch.float64)
    allowed = restrict(logits, torch.tensor([2]), chosen_S=torch.tensor([2]))
    assert torch.isfinite(allowed).tolist() == [[True, True, True, False]]


def test_log_probabilities_on_the_nucleus_sum_to_one() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids, log_probs, size = draw(logits.expand(4000, -1), uniform, 0.7)
    seen = {int(i): float(p.exp()) for i, p in zip(ids, log_probs, strict=True)}
    assert len(seen) == int(size[0]) < 50
    assert sum(seen.values()) == pytest.approx(1.0)


def test_banned_ids_are_never_written(mllm: FrozenMLLM) -> None:
    head = mllm.model.lm_head.weight
    kept = head.data.clone()
    try:
        banned = torch.isinf(mllm.bias_V).nonzero()[:, 0].tolist()
        config = mllm.model.config
        assert {config.image_token_id, config.video_token_id} < set(banned)
        assert banned[-1] >= len(mllm.tokenizer), "rows without a token are banned too"
        head.data[banned] = 100 * head.data.abs().max()  # the model would love to
        ids = write(mllm, TEXTS, seed=3).token_ids_SR
        assert not torch.isin(ids, torch.tensor(banned)).any()
    finally:
        head.data.copy_(kept)


def test_nothing_follows_the_end_token_which_counts(mllm: FrozenMLLM) -> None:
    completions = write(mllm, TEXTS)
    assert int(completions.ended_S.sum()) > 0
    for ids, ended, num in zip(completions.token_ids_SR, completions.ended_S, completions.num_tokens_S, strict=True):
        written = ids[:num].tolist()
        assert (ids[num:] == -1).all()
        assert (written[-1] in mllm.end_ids) == bool(ended)
        assert not set(written[:-1]) & set(mllm.end_ids)


def test_an_answer_that_reaches_its_bound_is_cut(mllm: FrozenMLLM) -> None:
    long, short = write(mllm, TEXTS), write(mllm, TEXTS, num_tokens=5)
    assert short.token_ids_SR.shape[1] == 5
    assert torch.equal(short.token_ids_SR, long.token_ids_SR[:, :5])
    assert not short.ended_S[long.num_tokens_S > 5].any()


def test_checkpoint_defaults_never_reach_the_sampler(mllm: FrozenMLLM) -> None:
    stated = mllm.model.generation_config
    assert (stated.top_k, stated.top_p) == (1, 0.001), "the folder asks for greedy answers"
    texts = {tuple(ids.tolist()) for ids in write(mllm, TEXTS, temperature=2.0).token_ids_SR}
    assert len(texts) == 12


@pytest.mark.parametrize("texts", [("What is this?", " and ", " Differ?"), ("", " and ", "Differ?")])
def test_a_prefix_read_once_for_all_answers_gives_what_copies_of_it_give(
    mllm: FrozenMLLM, texts: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SharedDecodeMemory | DecodeMemory] = []

    def watched(mllm: FrozenMLLM, *sizes: Any) -> SharedDecodeMemory | DecodeMemory:
        made.append(decode_memory(mllm, *sizes))
        return made[-1]

    monkeypatch.setattr("saga_ray.mllm.sampling.decode_memory", watched)
    for seed in range(3):
        found = [write(replace(mllm, split=split), texts, seed=seed, num_tokens=40) for split in (True, False)]
        shared, copied = found
        assert torch.equal(shared.token_ids_SR, copied.token_ids_SR)
        torch.testing.assert_close(shared.log_probs_S, copied.log_probs_S, rtol=1e-11, atol=1e-11)
        assert len(set(shared.num_tokens_S.tolist())) > 3, "answers end at different times"
    assert [type(memory) for memory in made] == 3 * [SharedDecodeMemory, DecodeMemory]


def test_rows_leave_a_shared_memory_in_any_order_and_pairs_with_their_last() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    prefix = [(normal(3, 2, 5, 4), normal(3, 2, 5, 4)) for _ in range(2)]
    memories = SharedDecodeMemory(prefix, 4, 6), DecodeMemory(prefix, 4, 6)
    num_rows = 12
    for kept in ([0, 1, 3, 8, 9, 10, 11], [1, 2, 3, 4, 5], [4], None):
        for layer in range(2):
            new = NewRows(normal(num_rows, 6, 1, 4), normal(num_rows, 2, 1, 4), normal(num_rows, 2, 1, 4), 0.5)
            got, want = (memory.attend(layer, new) for memory in memories)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
        for memory in memories:
            memory.advance()
            if kept is not None:
                memory.keep(torch.tensor(kept))
        num_rows = len(kept or ())
    assert len(memories[0].prefix[0][0]) == 1


def test_a_low_temperature_writes_what_greedy_generation_of_the_library_writes(mllm: FrozenMLLM) -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    completions = write(mllm, TEXTS, temperature=1e-6)
    layout = mllm.layout(TEXTS, (2, 2))
    tokens = torch.randn(3, 2, 4, 4, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prompt = torch.tensor([layout.prompt_ids(mllm.model.config.image_token_id)])
    try:
        for pair in range(3):
            levels = tokens[pair].transpose(0, 1)
            output = BaseModelOutputWithDeepstackFeatures(
                pooler_output=[*levels[0]], deepstack_features=[[*level] for level in levels[1:]]
            )
            written = mllm.model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), mm_encoder_outputs={"image": output},
                mm_token_type_ids=(prompt == mllm.model.config.image_token_id).int(),
                image_grid_thw=torch.tensor([[1, 4, 4]] * 2), do_sample=False, max_new_tokens=30, top_k=50, top_p=1.0,
                suppress_tokens=torch.isinf(mllm.bias_V).nonzero()[:, 0].tolist(),
            )[0, prompt.shape[1] :]  # fmt: skip
            ours = completions.token_ids_SR[4 * pair]
            ours = ours[ours >= 0]
            assert torch.equal(ours, written[: len(ours)])
            assert len(written) == len(ours)
    finally:
        mllm.model.model.rope_deltas = None


def test_given_answers_end_with_the_end_token(mllm: FrozenMLLM) -> None:
    completions = given(mllm, ["yes", ""])
    assert completions.token_ids_SR[1].tolist()[0] == mllm.end_ids[0]
    assert completions.num_tokens_S.tolist()[1] == 1
    assert completions.ended_S.all()
    with pytest.raises(ValueError, match="image placeholder"):
        given(mllm, ["a <|image_pad|>"])
