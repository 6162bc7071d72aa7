from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from saga_ray.mllm.attention import grouped_attention
from saga_ray.scorer.engine import ScoringEngine, attention_layer
from saga_ray.scorer.local import build_engine
from tests.helpers.scoring import small_request, small_run_config
from tests.helpers.small_mllm import small_answer

# `straight` is two tokens: it counts as two.
ANSWERS = (
    small_answer("straight", "plain", "hooked", "barred", "yes"),
    small_answer("hooked", "plain", "hooked", "plain", "no"),
    '{"bird_2":{"wing":"barred","wing":"straight"},"same":"yes"}',  # one repeated, others omitted
    "I cannot say.",
)
NUM_TOKENS = ((3, 2), (2, 2), (0, 2), (0, 0))


def eager_attention(
    engine: ScoringEngine, folder: Path, request: Any, text: str
) -> tuple[torch.Tensor, list[str], int]:
    """Head mean of the library's own eager attention at the configured layer, tokens of the answer, prompt length."""
    mllm = engine.mllm
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    layout = mllm.layout(engine.texts, (2, 2))
    prompt = layout.prompt_ids(model.config.image_token_id)
    answer = mllm.tokenizer.encode(text, add_special_tokens=False)
    ids = torch.tensor([prompt + answer])
    pair = request.pairs[0]
    tokens = request.tokens.tokens_NLTD.float()
    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=[tokens[pair.first, 0], tokens[pair.second, 0]],
        deepstack_features=[[tokens[pair.first, level], tokens[pair.second, level]] for level in (1, 2, 3)],
    )
    with torch.no_grad():
        out = model(
            input_ids=ids, mm_token_type_ids=(ids == model.config.image_token_id).int(), mm_encoder_outputs={"image": output},
            image_grid_thw=torch.tensor([[1, 4, 4]] * 2), output_attentions=True,
        )  # fmt: skip
    weights = out.attentions[engine.capture_layer][0].mean(dim=0)
    return weights, mllm.tokenizer.convert_ids_to_tokens(answer), len(prompt)


@pytest.mark.parametrize("rows", ["token", "predictor"])
@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_captured_attention_equals_eager_attention(folder: Path, rows: str, depth: float) -> None:
    engine = build_engine(
        small_run_config(folder, alignment__rows=rows, alignment__layer_depth=depth, mllm__dtype="float32")
    )
    request = small_request(1, answers=(ANSWERS,), rewards_PG=torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    result = engine.score(request)
    columns = engine.mllm.layout(engine.texts, (2, 2)).image_columns
    want = torch.zeros(2, 4)
    words = {"str", "aight", "plain", "hooked", "barred"}
    for text, counts in zip((ANSWERS[0], ANSWERS[2]), ((3, 2), (0, 2)), strict=True):
        weights, pieces, start = eager_attention(engine, folder, request, text)
        described = [i for i, piece in enumerate(pieces) if piece in words]
        described = described[-sum(counts) :]  # of a repeated attribute only the last value
        for image, own in enumerate((described[: counts[0]], described[counts[0] :])):
            for token in own:
                row = weights[start + token - (rows == "predictor"), slice(*columns[image])]
                want[image] += row / row.sum()
    assert result.attention_count_P2.tolist() == [[3, 4]]
    assert torch.allclose(result.attention_sum_P2T[0], want, atol=3e-6)
    assert torch.allclose(result.attention_sum_P2T[0].sum(dim=1), torch.tensor([3.0, 4.0]))


def test_only_attribute_tokens_of_correct_answers_count(folder: Path) -> None:
    engine = build_engine(small_run_config(folder))
    for right in range(4):
        rewards = torch.zeros(1, 4)
        rewards[0, right] = 1.0
        result = engine.score(small_request(1, answers=(ANSWERS,), rewards_PG=rewards))
        assert result.attention_count_P2.tolist() == [list(NUM_TOKENS[right])]


def test_a_pair_whose_answers_agree_has_no_attention(folder: Path) -> None:
    engine = build_engine(small_run_config(folder))
    result = engine.score(small_request(1, answers=(ANSWERS,), rewards_PG=torch.ones(1, 4)))
    assert result.attention_count_P2.tolist() == [[0, 0]]
    assert not result.attention_sum_P2T.any()


def test_attention_does_not_depend_on_whether_a_gradient_is_asked_for(folder: Path) -> None:
    from saga_ray.types import ScoreOptions

    engine = build_engine(small_run_config(folder, mllm__dtype="float64"))
    both = engine.score(small_request(4))
    alone = engine.score(small_request(4, options=ScoreOptions(gradient=False)))
    none = engine.score(small_request(4, options=ScoreOptions(attention=False)))
    assert torch.equal(both.attention_sum_P2T, alone.attention_sum_P2T)
    assert torch.equal(both.token_grads_P2LTD, none.token_grads_P2LTD)
    assert not alone.token_grads_P2LTD.any()
    assert not none.attention_count_P2.any()


def test_layers_are_counted_from_one_as_in_the_paper() -> None:
    assert attention_layer(26 / 36, 36) == 26 - 1
    assert [attention_layer(depth, 4) for depth in (0.01, 0.25, 0.5, 0.75, 1.0)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_grouped_attention_equals_repeated_heads(num_rows: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 6, num_rows, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 5, 8, dtype=torch.float64)
    mask = torch.ones(num_rows, 5, dtype=torch.bool).tril(5 - num_rows)
    got = grouped_attention(query, key, value, None if num_rows == 1 else mask, 0.3)
    scores = query @ key.repeat_interleave(3, dim=1).transpose(2, 3) * 0.3
    want = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.repeat_interleave(3, dim=1)
    assert torch.allclose(got, want)
