"""Every token of an answer belongs to one attribute or to none."""

from __future__ import annotations

from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from saga_ray.mllm.answers import parse_answer
from saga_ray.mllm.text import TokenTexts
from saga_ray.mllm.vocabulary import Vocabulary, load_vocabulary
from saga_ray.vocab.cost import tokens_by_attribute, typical_cost
from tests.helpers.small_mllm import ATTRIBUTES, small_tokenizer

BUNDLED = str(files("saga_ray").joinpath("mllm", "demo", "weights"))
VASE = Vocabulary(role="critic", item="vase", verdict_key="same", attributes={"glaze": ("matt", "gloss"), "foot": None})
TEXT = '{"vase_1":{"glaze":"matt","foot":"round"},"vase_2":{"glaze":"gloss","foot":"flat"},"same":"no"}'


def spent(text: str, ends: list[int], key: str = "same") -> dict[tuple[int, str], int]:
    return tokens_by_attribute(text, ends, parse_answer(text, key).spans)


def test_with_one_token_per_character_stretches_are_as_long_as_their_text() -> None:
    found = spent(TEXT, list(range(1, len(TEXT) + 1)))
    assert found == {
        (0, "glaze"): len('"glaze":"matt'),
        (0, "foot"): len('","foot":"round'),
        (1, "glaze"): len('"glaze":"gloss'),
        (1, "foot"): len('","foot":"flat'),
    }


def slow(text: str, ends: list[int]) -> dict[tuple[int, str], int]:
    """The same, character by character: whose is the last character of each token?"""
    owner: dict[int, tuple[int, str]] = {}
    spans = sorted(parse_answer(text, "same").spans, key=lambda span: span.start)
    for number, span in enumerate(spans):
        first = text.rindex("{", 0, span.start) + 1
        if number and spans[number - 1].image == span.image:
            first = spans[number - 1].stop
        owner |= dict.fromkeys(range(first, span.stop), (span.image, span.attribute))
    counts = dict.fromkeys(owner.values(), 0)
    for end in ends:
        if end - 1 in owner:
            counts[owner[end - 1]] += 1
    return counts


@settings(deadline=None, max_examples=80)
@given(st.sets(st.integers(1, len(TEXT) - 1)))
def test_however_the_text_is_cut_no_token_counts_twice(cuts: set[int]) -> None:
    ends = [*sorted(cuts), len(TEXT)]
    found = spent(TEXT, ends)
    assert found == slow(TEXT, ends)
    assert sum(found.values()) <= len(ends)


def test_a_value_of_several_parts_is_one_stretch_and_an_empty_one_costs_nothing() -> None:
    text = '{"vase_1":{"glaze":["matt","gray"],"foot":""},"vase_2":{},"same":"no"}'
    found = spent(text, list(range(1, len(text) + 1)))
    assert found == {(0, "glaze"): len('"glaze":["matt","gray')}


def test_the_bundled_mllm_spends_two_tokens_on_every_attribute() -> None:
    vocabulary, _ = load_vocabulary(f"{BUNDLED}/saga_prompt.yaml")
    cost = typical_cost(vocabulary, AutoTokenizer.from_pretrained(BUNDLED))
    assert cost is not None
    assert set(cost.attributes.values()) == {(2.0, 2, 2)}
    assert (cost.description, cost.answer) == (20, 43)


def test_words_without_tokens_have_no_cost() -> None:
    birds, _ = load_vocabulary("birds")
    assert typical_cost(birds, AutoTokenizer.from_pretrained(BUNDLED)) is None


@pytest.mark.parametrize("name", ["birds", "cars", "aircraft"])
def test_costs_of_attributes_and_what_stands_around_them_make_the_answer(name: str) -> None:
    vocabulary, _ = load_vocabulary(name)
    cost = typical_cost(vocabulary, small_tokenizer())
    assert cost is not None
    assert all(0 < least <= mean <= most for mean, least, most in cost.attributes.values())
    assert 0 < cost.answer - 2 * cost.description < 80  # braces, keys of the descriptions, differences, verdict


def test_a_value_of_two_tokens_costs_one_more() -> None:
    own = Vocabulary(role="r", item="bird", verdict_key="same", attributes=ATTRIBUTES)
    cost = typical_cost(own, small_tokenizer())
    assert cost is not None
    tokenizer = small_tokenizer()
    texts = TokenTexts(tokenizer)
    assert texts.decode(tokenizer.encode("straight")) == "straight"
    mean, least, most = cost.attributes["bill"]
    assert (mean, most - least) == ((least + most) / 2, 1)  # "straight" is cut in two, "hooked" is not


def test_free_text_counts_as_a_few_words() -> None:
    cost = typical_cost(VASE, small_tokenizer())
    assert cost is not None
    mean, least, most = cost.attributes["foot"]
    assert mean == least == most > 0
