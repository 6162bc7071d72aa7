import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration

from saga_ray.config import DataConfig
from saga_ray.data.demo import birds, world
from saga_ray.mllm.demo import check, talking, tower, words
from saga_ray.mllm.demo.folder import WEIGHTS


@pytest.fixture(scope="module")
def model() -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(WEIGHTS).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(WEIGHTS)


def _pictures(num: int) -> tuple[np.ndarray, np.ndarray]:
    return world.clean_batch(np.random.default_rng(5), num)


def _native_inputs(processor, images: np.ndarray, variant: str = "structured"):
    before, between, after = words.PROMPTS[variant]
    prompt = before + words.IMAGE + between + words.IMAGE + after
    return processor(
        text=[prompt] * (len(images) // 2), images=[Image.fromarray(image) for image in images], return_tensors="pt"
    )


def test_the_folder_loads_as_a_real_qwen3_vl_with_three_deepstack_levels(model) -> None:
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert model.dtype == torch.float32
    assert len(model.model.visual.deepstack_merger_list) == 3


def test_the_weights_are_at_most_15_megabytes_of_safetensors_and_nothing_is_pickled() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.glob("*.safetensors")) <= 15_000_000
    assert {file.suffix for file in WEIGHTS.iterdir()} <= {".safetensors", ".json", ".yaml", ".jinja", ".md"}


def test_every_parameter_is_used(model) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() > 0, name


def test_the_chat_template_renders_the_prompt_of_the_folder(processor) -> None:
    document = yaml.safe_load((WEIGHTS / "saga_prompt.yaml").read_text())
    for variant, ask in (("structured", words.ASK_STRUCTURED), ("generic", words.ASK_GENERIC)):
        content = [
            {"type": "text", "text": words.BIRD_1},
            {"type": "image"},
            {"type": "text", "text": words.BIRD_2},
            {"type": "image"},
            {"type": "text", "text": ask},
        ]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, between, after = document["templates"][variant]
        assert text == before + words.IMAGE + between + words.IMAGE + after


def test_the_prompt_file_names_the_attributes_of_the_world(processor) -> None:
    document = yaml.safe_load((WEIGHTS / "saga_prompt.yaml").read_text())
    assert document["attributes"] == {name: list(values) for name, values in birds.ATTRIBUTES.items()}
    assert document["max_new_tokens"] == words.MAX_ANSWER_TOKENS == 48


@pytest.mark.parametrize("generic", [False, True])
def test_answers_survive_the_tokenizer_and_are_json(processor, generic: bool) -> None:
    rng = np.random.default_rng(0)
    for distance in range(11):
        first = world.pool_vectors(rng, 1)
        second = tower.changed_vectors(rng, first, np.array([distance]))
        text = words.answer_text(first[0], second[0], generic=generic)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == words.answer_ids(first, second, generic=generic)[0, :-1].tolist()
        assert processor.tokenizer.decode(ids) == text
        answer = json.loads(text)
        assert answer["same_species"] == ("yes" if distance <= 2 else "no")
        assert len(answer["differences"]) == min(distance, 4)
        assert len(ids) + 1 <= 48


def test_token_offsets_find_every_value_of_both_birds(processor) -> None:
    first, second = world.pool_vectors(np.random.default_rng(1), 2)
    text = words.answer_text(first, second)
    offsets = processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert offsets[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(offsets))
    spoken = [text[slice(*offsets[place])] for place in words.VALUE_POSITIONS]
    values = list(birds.ATTRIBUTES.values())
    assert spoken == [values[i % 10][v] for i, v in enumerate([*first, *second])]


def test_a_malformed_answer_is_not_read() -> None:
    first, second = world.pool_vectors(np.random.default_rng(2), 2)
    text = words.answer_text(first, second)
    assert words.read_answer(text) == json.loads(text)
    for broken in (text[:-1], text.replace("bird_2", "bird_3"), text.replace('"leg color":', '"leg":'), "[]", "3"):
        assert words.read_answer(broken) is None


def test_the_training_towers_tokens_equal_the_models_own(model, processor) -> None:
    images, _ = _pictures(3)
    pixels = processor.image_processor([Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        native = model.model.visual(pixels["pixel_values"], pixels["image_grid_thw"])
        levels = tower.tower_levels(model.model.visual, torch.from_numpy(images))
    for ours, theirs in zip(levels, [native.pooler_output, *native.deepstack_features], strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), theirs, rtol=1e-4, atol=1e-4)


def test_training_sees_the_logits_of_the_native_forward(model, processor) -> None:
    images, attributes = _pictures(4)
    inputs = _native_inputs(processor, images)
    answer = torch.from_numpy(words.answer_ids(attributes[0::2], attributes[1::2]))
    ids_PR = torch.cat([inputs["input_ids"], answer], dim=1)
    kinds = (ids_PR == words.TOKEN_ID[words.IMAGE]).int()
    with torch.no_grad():
        native = model(
            input_ids=ids_PR,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=kinds,
            attention_mask=torch.ones_like(ids_PR),
        ).logits
        levels = tower.tower_levels(model.model.visual, torch.from_numpy(images))
        last, _ = talking.hidden_states(model, ids_PR, levels)
        ours = model.lm_head(last)
    torch.testing.assert_close(ours, native, rtol=1e-4, atol=1e-3)


def test_greedy_answers_equal_those_of_generate(model, processor) -> None:
    images, _ = _pictures(8)
    inputs = _native_inputs(processor, images)
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=words.MAX_ANSWER_TOKENS)
    native = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ours, _ = check.answers(model, torch.from_numpy(images), temperature=0.0)
    assert ours == native


def test_the_bundled_model_describes_and_judges_birds_it_never_saw(model) -> None:
    """Far below its card, far above chance: guards against weights that do not fit the code."""
    read = check.measure_reading(model, 32)
    assert read["temperature_1"]["well_formed"] > 0.9
    assert read["greedy"]["attributes"] > 0.85
    assert read["greedy"]["verdict"] > 0.8
    assert read["verdict_follows_words"] > 0.9


def test_the_card_was_measured_on_these_weights() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert card["sha256"] == hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    assert card["drawing_version"] == birds.DRAWING_VERSION
    told, data = card["default_world_validation_pairs"], DataConfig()
    assert (told["gap"], told["shift"]) == (data.gap, data.shift)
    assert set(card["held_out_clean_pictures"]["greedy"]["per_attribute"]) == set(birds.NAMES)
    read = card["held_out_clean_pictures"]
    assert read["temperature_1"]["well_formed"] > 0.99
    assert read["greedy"]["attributes"] > 0.99
    assert min(read["greedy"]["verdict_same"], read["greedy"]["verdict_different"]) > 0.95
    assert read["verdict_follows_words"] > 0.9
