from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga_ray.mllm.answers import Span, parse_answer, tokens_of_span

KEY = "same_species"
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
descriptions = st.dictionaries(words, words, max_size=4)
values = st.recursive(
    st.one_of(words, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


def answer(verdict: object = "yes", **more: object) -> str:
    return json.dumps({"bird_1": {"bill": "long"}, "bird_2": {"bill": "short"}, **more, KEY: verdict})


@pytest.mark.parametrize(
    "text",
    [
        answer(),
        f"```json\n{answer()}\n```",
        f"Sure {{as asked}}: {answer()} I hope this helps.",
        answer().replace(",", " ,\n").replace(":", " :\t"),
        f'{{"{KEY}": "yes"}}',
        f'{{"{KEY}": "yes", "{KEY}": "yes"}}',
    ],
)
def test_a_verdict_is_read_through_fences_and_words_around_it(text: str) -> None:
    assert parse_answer(text, KEY).verdict == 1
    assert parse_answer(text.replace('"yes"', '"no"'), KEY).verdict == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "{}",
        "{",
        answer("maybe"),
        answer("Yes, they are"),
        answer(""),
        answer(True),
        answer(1),
        answer(None),
        answer(["yes"]),
        answer({"yes": "yes"}),
        answer().replace(KEY, "same"),
        answer()[:-1],  # cut
        answer().replace('"yes"', '"yes'),
        f'{{"{KEY}": "yes", "{KEY}": "no"}}',  # both
        f'{{"{KEY}": "yes"}} or {{"{KEY}": "no"}}',
        f'{{"bird_1": {{"{KEY}": "yes"}}}}',  # not at the top
        f'{{"bird_1": {{"{KEY}": "yes"}}',  # cut, with a complete object inside
        f'{{"bird_1": oops {{"{KEY}": "yes"}}}}',
        f'[{{"{KEY}": "yes"}}, {{"{KEY}": "no"}}]',
        '{"a": ' + "[" * 5000,
        '{"a": ' * 5000,
    ],
)
def test_no_verdict_is_read_from_anything_else(text: str) -> None:
    parsed = parse_answer(text, KEY)
    assert parsed.verdict == -1
    assert parsed.spans == ()


@given(words)
def test_any_text_is_read_without_failing(text: str) -> None:
    assert parse_answer(text, KEY).verdict == -1 or KEY in text


@given(st.dictionaries(words.filter(lambda w: w != KEY), values, max_size=4), st.sampled_from(["yes", "no"]))
def test_every_valid_object_with_a_verdict_is_read_like_the_json_library_does(others: dict, verdict: str) -> None:
    text = json.dumps({**others, KEY: verdict}, ensure_ascii=False)
    assert parse_answer(text, KEY).verdict == (verdict == "yes")


@given(descriptions, descriptions, st.integers(0, 3))
def test_spans_are_the_values_of_both_descriptions(first: dict, second: dict, indent: int) -> None:
    text = json.dumps({"bird_1": first, "bird_2": second, KEY: "no"}, ensure_ascii=False, indent=indent or None)
    spans = parse_answer(text, KEY).spans
    for image, description in enumerate((first, second)):
        got = [(s.attribute, json.loads(f'"{text[s.start : s.stop]}"')) for s in spans if s.image == image]
        assert got == [(name, value) for name, value in description.items() if value]


@given(descriptions, descriptions, st.data())
def test_a_cut_answer_has_no_verdict(first: dict, second: dict, data: st.DataObject) -> None:
    text = json.dumps({"bird_1": first, "bird_2": second, KEY: "yes"})
    assert parse_answer(text[: data.draw(st.integers(0, len(text) - 1))], KEY).verdict == -1


def test_a_repeated_attribute_counts_with_its_last_value_and_an_omitted_one_not_at_all() -> None:
    text = '{"bird_1":{"bill":"long","wing":"","bill":"short"},"bird_2":{},"same_species":"no"}'
    (span,) = parse_answer(text, KEY).spans
    assert (span.image, span.attribute, text[span.start : span.stop]) == (0, "bill", "short")
    assert span.start > text.index("wing")


def test_lists_and_numbers_describe_and_null_does_not() -> None:
    text = '{"car_1":{"doors":4,"colors":["red","blue"],"era":null},"car_2":{"size":{"a":"big"}},"same_species":"no"}'
    found = [(s.image, s.attribute, text[s.start : s.stop]) for s in parse_answer(text, KEY).spans]
    assert found == [(0, "doors", "4"), (0, "colors", "red"), (0, "colors", "blue"), (1, "size", "big")]


def test_a_token_belongs_to_a_span_if_it_holds_one_of_its_characters() -> None:
    ends = [3, 3, 7, 10, 12]  # the second token is empty
    assert tokens_of_span(ends, Span(0, "bill", 4, 8)) == [2, 3]
    assert tokens_of_span(ends, Span(0, "bill", 3, 7)) == [2]
    assert tokens_of_span(ends, Span(0, "bill", 0, 12)) == [0, 2, 3, 4]
