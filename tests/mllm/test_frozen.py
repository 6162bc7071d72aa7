from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_ray.config import MLLMConfig
from saga_ray.mllm.exact import exact_float64
from saga_ray.mllm.frozen import FrozenMLLM, weights_hash
from saga_ray.mllm.gradients import naive_hidden
from saga_ray.mllm.loading import load_mllm
from saga_ray.mllm.prompt import load_prompt, prompt_texts


@pytest.fixture(scope="module")
def mllm(folder: Path) -> FrozenMLLM:
    return load_mllm(MLLMConfig(path=str(folder), dtype="float32"))


def texts_of(mllm: FrozenMLLM) -> tuple[str, str, str]:
    return prompt_texts(load_prompt("demo", "structured", mllm.folder), mllm.tokenizer, mllm.marks)


def test_injected_tokens_give_what_the_stock_model_gives_from_pixels(mllm: FrozenMLLM) -> None:
    """Processor, tower, DeepStack, positions and prompt: all of it against the model's own way from two pictures."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    before, between, after = texts_of(mllm)
    image = mllm.tokenizer.image_token
    answer = '{"bird_1":{"bill":"hooked"},"same":"no"}'
    inputs = mllm.processor(
        text=[before + image + between + image + after + answer], images=pictures, return_tensors="pt"
    )
    with torch.no_grad():
        native = mllm.model(**inputs).logits[0]
        vision = mllm.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    mllm.model.model.rope_deltas = None
    tokens_2LTD = torch.stack(
        [torch.stack(list(level)) for level in (vision.pooler_output, *vision.deepstack_features)], dim=1
    )
    layout = mllm.layout(texts_of(mllm), (2, 2))
    prompt = torch.tensor(layout.prompt_ids(mllm.model.config.image_token_id))
    assert inputs["input_ids"][0, : len(prompt)].tolist() == prompt.tolist()
    ids_GR = inputs["input_ids"][:, len(prompt) :]
    with torch.no_grad():
        ours = mllm.model.lm_head(naive_hidden(mllm, layout, prompt, tokens_2LTD, ids_GR))[0]
    assert (ours - native[len(prompt) - 1 : -1]).abs().max() < 1e-5


def test_positions_go_on_after_the_images_longer_side(mllm: FrozenMLLM) -> None:
    layout = mllm.layout(texts_of(mllm), (2, 3))
    first = len(layout.before_ids)
    assert layout.positions_3C[:, first : first + 6].tolist() == [
        [first] * 6,
        [first, first, first, first + 1, first + 1, first + 1],
        [first, first + 1, first + 2] * 2,
    ]
    assert layout.positions_3C[:, first + 6].tolist() == [first + 3] * 3
    rows = mllm.answer_positions(layout, 3)
    assert rows[:, 0].tolist() == layout.positions_3C[:, -1].tolist()
    assert rows.tolist() == [[int(rows[0, 0]) + i for i in range(3)]] * 3


def test_image_columns_are_where_the_placeholders_stand(mllm: FrozenMLLM) -> None:
    layout = mllm.layout(texts_of(mllm), (2, 2))
    image_id = mllm.model.config.image_token_id
    ids = layout.prompt_ids(image_id)
    (a, b), (c, d) = layout.image_columns
    assert [i for i, token in enumerate(ids) if token == image_id] == [*range(a, b), *range(c, d)]


def test_text_before_the_first_image_may_be_empty(mllm: FrozenMLLM) -> None:
    _, between, after = texts_of(mllm)
    layout = mllm.layout(("", between, after), (2, 2))
    tokens = torch.randn(2, 2, 4, 4, 64)
    prefix = mllm.prefill(tokens, layout, mllm.constant_prefix(layout))
    assert prefix.keys_values[0][0].shape[2] == len(layout.prompt_ids(0)) - 1


def test_texts_with_placeholders_or_without_an_end_are_refused(mllm: FrozenMLLM) -> None:
    before, between, after = texts_of(mllm)
    with pytest.raises(ValueError, match="leave them out"):
        mllm.layout((before + mllm.tokenizer.image_token, between, after), (2, 2))
    with pytest.raises(ValueError, match="at least one token"):
        mllm.layout((before, between, ""), (2, 2))


def test_the_prefix_is_the_same_whether_or_not_its_constant_part_is_computed_apart(folder: Path) -> None:
    mllm = load_mllm(MLLMConfig(path=str(folder), dtype="float64"))
    layout = mllm.layout(texts_of(mllm), (2, 2))
    tokens = torch.randn(2, 2, 4, 4, 64, dtype=torch.float64)
    apart = mllm.prefill(tokens, layout, mllm.constant_prefix(layout)).keys_values
    ids = torch.tensor(layout.prompt_ids(mllm.model.config.image_token_id))
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    for pair in range(2):
        levels = tokens[pair].transpose(0, 1)
        output = BaseModelOutputWithDeepstackFeatures(
            pooler_output=[*levels[0]], deepstack_features=[[*level] for level in levels[1:]]
        )
        cache = mllm.model.model(
            input_ids=ids[None, :-1], position_ids=layout.positions_3C[:, None, :-1], mm_encoder_outputs={"image": output}, use_cache=True
        ).past_key_values  # fmt: skip
        for (key, value), theirs in zip(apart, cache.layers, strict=True):
            assert torch.allclose(key[pair], theirs.keys[0], rtol=1e-10, atol=1e-12)
            assert torch.allclose(value[pair], theirs.values[0], rtol=1e-10, atol=1e-12)


def test_lifting_the_upcasts_makes_float64_exact(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    ids = torch.arange(20, 60)[None]
    pixels = torch.randn(16, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = torch.tensor([[1, 4, 4]])
    out = {}
    for dtype, lifted in ((torch.float32, False), (torch.float64, False), (torch.float64, True)):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        if lifted:
            exact_float64(model)
        with torch.no_grad():
            seen = model.model.get_image_features(pixels.to(dtype), grid, return_dict=True).pooler_output[0]
            out[dtype, lifted] = torch.cat((model(input_ids=ids).logits.flatten(), seen.flatten())).double()
    exact = out[torch.float64, True]
    # The stock model in float64 is off by float32 roundings, but by no more.
    assert 1e-9 < float((out[torch.float64, False] - exact).abs().max()) < 1e-3
    assert float((out[torch.float32, False] - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lifting_leaves_the_rotation_of_other_dtypes_bit_for_bit_alone(dtype: torch.dtype) -> None:
    from transformers.models.qwen3_vl import modeling_qwen3_vl as library

    exact_float64(torch.nn.Identity())
    q, k = torch.randn(2, 16, 2, 8).to(dtype)
    cos, sin = torch.randn(2, 16, 8)

    def stock(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * cos[:, None] + library.rotate_half(wide) * sin[:, None]).to(dtype)

    got = library.apply_rotary_pos_emb_vision(q, k, cos, sin)
    assert torch.equal(got[0], stock(q))
    assert torch.equal(got[1], stock(k))


def test_the_weights_hash_is_that_of_the_weights(folder: Path, mllm: FrozenMLLM, tmp_path: Path) -> None:
    from tests.helpers.small_mllm import small_mllm_folder

    other = load_mllm(MLLMConfig(path=str(small_mllm_folder(tmp_path / "other", seed=1))))
    again = load_mllm(MLLMConfig(path=str(small_mllm_folder(tmp_path / "again", seed=0))))
    assert mllm.weights_hash() == again.weights_hash() != other.weights_hash()


def test_the_weights_hash_covers_tokens_and_configuration(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    found = {weights_hash(folder)}
    assert weights_hash(copy) in found
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        assert weights_hash(copy) not in found, name
        found.add(weights_hash(copy))


def test_the_weights_hash_of_a_large_file_sees_a_change_in_its_middle(tmp_path: Path) -> None:
    size = 300 * 2**20
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(size)  # sparse: takes no disk
    before = weights_hash(tmp_path)
    with path.open("r+b") as file:  # a fifteenth of the file, as one layer of a fine-tune would
        file.seek(size // 2)
        file.write(b"\1" * (size // 15))
    assert weights_hash(tmp_path) != before
