from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from saga_ray.config import DATASETS
from saga_ray.mllm.answers import parse_answer
from saga_ray.mllm.families.base import text_of_id
from saga_ray.mllm.marks import ImageMarks
from saga_ray.mllm.prompt import (
    Prompt,
    answer_text,
    load_prompt,
    prompt_from_vocabulary,
    prompt_ids,
    prompt_texts,
    request_text,
)
from tests.helpers.published import sentencepiece_tokenizer
from tests.helpers.small_mllm import saga_prompt, small_tokenizer

MARKS = ImageMarks("<|image_pad|>")

PAPER_COUNTS = {"cub": 28, "inat-aves": 28, "cars": 17, "aircraft": 17}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("variant", ["structured", "compact", "generic"])
def test_every_data_set_has_a_prompt_that_asks_for_its_verdict_last(dataset: str, variant: str) -> None:
    prompt = load_prompt(dataset, variant, None)
    system, user = request_text(prompt)
    assert user.rstrip().splitlines()[-1].startswith(f'"{prompt.verdict_key}": "yes"')
    listed = [name for name in prompt.attributes if f"- {name}" in user]
    assert len(listed) == (0 if variant == "generic" else len(prompt.attributes))
    assert (prompt.role in system) == (variant != "generic")


@pytest.mark.parametrize("dataset", PAPER_COUNTS)
def test_vocabularies_have_as_many_attributes_as_the_paper_names(dataset: str) -> None:
    assert len(load_prompt(dataset, "structured", None).attributes) == PAPER_COUNTS[dataset]


@pytest.mark.parametrize("dataset", DATASETS)
def test_shipped_names_are_ascii_and_commas_separate_values(dataset: str) -> None:
    attributes = load_prompt(dataset, "structured", None).attributes
    assert any(attributes.values())
    for name, values in attributes.items():
        assert name.isascii() and '"' not in name
        assert values is None or len(set(values)) == len(values) >= 2
        assert all("," not in value and '"' not in value and value.isascii() for value in values or ())


def test_the_structured_answer_has_four_parts_under_the_items_name() -> None:
    user = request_text(Prompt("critic", "vase", {"glaze": ("matt", "gloss")}, "same_maker", "structured"))[1]
    places = [user.index(f'"{key}"') for key in ("vase_1", "vase_2", "differences", "same_maker")]
    assert places == sorted(places)
    assert "- glaze (choose from: matt, gloss)" in user


@pytest.mark.parametrize("variant", ["structured", "generic"])
def test_only_a_short_request_stands_behind_the_images(variant: str) -> None:
    """What stands before the first image is computed once per run."""
    before, between, after = prompt_texts(load_prompt("cub", variant, None), small_tokenizer(), MARKS)
    assert before.endswith("<|vision_start|>")
    assert between.startswith("<|vision_end|>")
    assert after.startswith("<|vision_end|>")
    assert after.endswith("<|im_start|>assistant\n")
    assert len(between) + len(after) < 150
    assert "<|image_pad|>" not in before + between + after


def test_an_mllm_folder_with_its_own_prompt_replaces_vocabulary_and_template(folder: Path) -> None:
    prompt = load_prompt("cub", "structured", folder)
    assert tuple(prompt.attributes) == ("bill", "wing")
    assert prompt_texts(prompt, small_tokenizer(), MARKS) == tuple(saga_prompt(40)["templates"]["structured"])
    assert prompt.max_new_tokens == 40
    generic = load_prompt("cub", "generic", folder)
    assert prompt_texts(generic, small_tokenizer(), MARKS) == tuple(saga_prompt(40)["templates"]["generic"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict_key": None}, "verdict_key is None"),
        ({"item": 3}, "item is 3"),
        ({"attributes": {}}, "attributes is {}"),
        ({"templates": {"generic": ["a", "b", "c"]}}, "templates.structured is None"),
        ({"templates": {"structured": ["a", "b"]}}, "give three texts"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"attributes": ["bill", "wing", "bill"]}, "attributes: 'bill' stands twice; keep one"),
        ({"attributes": {"bill": None, "Bill": None}}, "'bill' and 'Bill' are one name when answers are read"),
        ({"attributes": ["bill", " "]}, "attributes: ' ' is empty; give it a word"),
        ({"attributes": {"bill": ["long", 'a "hook"']}}, "holds '\"', which breaks prompt or answer"),
        ({"attributes": {"bill": ["long", "long"]}}, "value 'long' stands twice; keep one"),
        ({"attributes": {"bill": ["long", "a\\b"]}}, "which breaks prompt or answer; leave it out"),
        ({"attributes": {"same": None}}, "attributes: 'same' is the verdict's key as well; rename one of the two"),
        ({"verdict_key": "reasoning"}, "verdict_key: 'reasoning' cannot be told from the rest of an answer"),
    ],
)
def test_a_broken_prompt_file_is_refused_with_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "saga_prompt.yaml"
    path.write_text(yaml.safe_dump({**saga_prompt(40), **change}))
    with pytest.raises(ValueError, match=message) as error:
        load_prompt("demo", "structured", tmp_path)
    assert str(path) in str(error.value)


def test_a_tokenizer_without_chat_template_or_that_drops_images_is_refused() -> None:
    tokenizer = small_tokenizer()
    prompt = prompt_from_vocabulary({"role": "r", "item": "i", "verdict_key": "v", "attributes": ["a"]}, "structured")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(ValueError, match="0 placeholders"):
        prompt_texts(prompt, tokenizer, MARKS)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        prompt_texts(prompt, tokenizer, MARKS)


def test_a_prompt_is_tokenised_as_a_processor_does_it() -> None:
    """Whole: between images a text would begin with a space of its own where words hold their spaces."""
    texts = ("USER: the first", "and the second", "no or yes?")
    tokenizer = sentencepiece_tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    before, between, after = prompt_ids(tokenizer, texts, image_id)
    want = tokenizer("<image>".join(texts), add_special_tokens=False).input_ids
    assert [*before, image_id, *between, image_id, *after] == want
    apart = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert list(before) == apart[0] and list(between) != apart[1] and list(after) != apart[2]
    byte_level = small_tokenizer()
    found = prompt_ids(byte_level, texts, byte_level.convert_tokens_to_ids("<|image_pad|>"))
    assert [list(ids) for ids in found] == [byte_level.encode(text, add_special_tokens=False) for text in texts]


def test_an_image_token_that_the_tokenizer_does_not_have_is_refused_with_its_key() -> None:
    tokenizer = small_tokenizer()
    assert text_of_id(tokenizer, "image_token_id", tokenizer.convert_tokens_to_ids("<|image_pad|>")) == "<|image_pad|>"
    for token_id in (len(tokenizer) + 7, -1):
        with pytest.raises(
            ValueError, match=rf"mllm\.path: .* no special token {token_id}, .* image_token_id; use files"
        ):
            text_of_id(tokenizer, "image_token_id", token_id)


@pytest.mark.parametrize("dataset", PAPER_COUNTS)
def test_the_compact_form_asks_for_the_same_attributes_and_no_free_words(dataset: str) -> None:
    compact, whole = (load_prompt(dataset, variant, None) for variant in ("compact", "structured"))
    assert compact.attributes == whole.attributes
    user = request_text(compact)[1]
    assert not any(word in user for word in ("differences", "confidence", "reasoning"))
    words = {name: "grey" for name in compact.attributes}
    answers = [answer_text(prompt, words, words, ["size"], True) for prompt in (compact, whole)]
    read = [parse_answer(text, compact.verdict_key) for text in answers]
    assert [answer.verdict for answer in read] == [1, 1]
    assert read[0].descriptions(answers[0]) == read[1].descriptions(answers[1]) == (words, words)
    assert len(answers[0]) < len(answers[1])
    assert list(json.loads(answers[0])) == ["1", "2", compact.verdict_key]


def test_template_answers_are_asked_for_what_the_template_holds() -> None:
    prompt = replace(Prompt("critic", "old vase", {"glaze": None}, "same_maker", "structured"), answers="template")
    user = request_text(prompt)[1]
    places = [user.index(f'"{key}"') for key in ("old_vase_1", "old_vase_2", "same_maker")]
    assert places == sorted(places)
    assert not any(word in user for word in ("differences", "confidence", "reasoning"))
    assert '"differences"' in request_text(replace(prompt, variant="generic"))[1]


def test_an_own_prompt_without_a_compact_form_says_so_in_a_sentence(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no compact form \(it has structured, generic\); set prompt.variant=struc"
    ):
        load_prompt("demo", "compact", folder)
