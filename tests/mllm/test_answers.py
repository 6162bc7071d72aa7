from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga_ray.mllm.answers import parse_answer, tokens_between

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
        answer(reasoning="x" * 2_000_000),
        answer(reasoning="{" * 100_000),
        answer(reasoning={"a": {"b": [[{"c": 1}]]}, KEY: "no"}),
        answer(reasoning='\ud83d\ude00 \\ " \u2028'),
        f"Thinking {{1, 2}} {{}} [\n] ...\n```JSON\n{answer()}\n```\n```\n{{}}\n```",
        f"\ufeff{answer()}<|im_end|>",
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
        "{" * 200_000,
        '[{"a":' * 50_000,
        f"{{'{KEY}': 'yes'}}",  # quotes of other languages
        f"{{\u201c{KEY}\u201d: \u201cyes\u201d}}",
        f'{{"{KEY}": \u201cyes\u201d}}',
        f'{{`{KEY}`: "yes"}}',
        answer().replace(" ", "\u00a0"),
        f'{{"{KEY}": "yes",}}',
        f'{{"{KEY}": "yes"',
        f'"{KEY}": "yes"',
        answer().replace(f'"{KEY}"', f'"{KEY.upper()}"'),
        answer().replace(f'"{KEY}"', f'"{KEY} "'),
        f'{{"{KEY}": "yes", "note": NaN}}',
        f'{{"{KEY}": "yes", "{KEY}": null}}',
        f'{{"{KEY}": ' + '{"a":' * 40 + '"yes"' + "}" * 41,
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


def reference(text: str) -> int:
    """What the json library makes of a text that is one object; repeated verdicts must agree."""
    verdicts = []

    def members(pairs: list) -> dict:
        verdicts.append([value for key, value in pairs if key == KEY])
        return dict(pairs)

    found = json.loads(text, object_pairs_hook=members, parse_constant=lambda _: 1 / 0)
    known = {("yes", "no").index(v) if v in ("yes", "no") else -1 for v in map(str, verdicts[-1])}
    strings = all(isinstance(v, str) for v in verdicts[-1])
    return {0: 1, 1: 0}.get(known.pop(), -1) if isinstance(found, dict) and strings and len(known) == 1 else -1


@given(descriptions, descriptions, st.sampled_from(["yes", "no", "maybe"]), st.data())
def test_a_damaged_answer_is_read_as_strictly_as_the_json_library_does(
    first: dict, second: dict, verdict: str, data: st.DataObject
) -> None:
    text = json.dumps({"bird_1": first, "bird_2": second, KEY: verdict}, ensure_ascii=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 4)))
        text = (
            text[:start]
            + data.draw(st.sampled_from(["", "}", "{", '"', "\\", ",", ":", "[", "yes", "\n", "é"]))
            + text[stop:]
        )
    parsed = parse_answer(text, KEY)
    for span in parsed.spans:
        assert 0 <= span.start < span.stop <= len(text) and span.image in (0, 1)
    if parsed.verdict_at is not None:
        assert text[slice(*parsed.verdict_at)] in ("yes", "no") or "\\" in text
    try:
        want = reference(text)
    except (ValueError, ZeroDivisionError):
        return
    if text.lstrip().startswith("{"):
        assert parsed.verdict == want


@given(descriptions, st.text(st.characters(codec="utf-8", exclude_characters="{")), st.text(max_size=20))
def test_words_around_an_answer_move_its_spans_and_nothing_else(first: dict, before: str, after: str) -> None:
    text = json.dumps({"bird_1": first, "bird_2": {}, KEY: "no"}, ensure_ascii=False)
    alone, among = parse_answer(text, KEY), parse_answer(before + text + after.replace("{", "("), KEY)
    assert among.verdict == alone.verdict == 0
    assert [(s.attribute, s.start - len(before), s.stop - len(before)) for s in among.spans] == [
        (s.attribute, s.start, s.stop) for s in alone.spans
    ]


def test_half_a_character_never_leaves_an_answer() -> None:
    text = answer().replace('"long"', r'"a\ud83d"').replace('"bill": "short"', r'"b\udc00": "c"')
    said = parse_answer(text, KEY).descriptions(text)
    assert said == ({"bill": "a?"}, {"b?": "c"})
    json.dumps(said, ensure_ascii=False).encode()


@given(descriptions, descriptions, st.data())
def test_sub_words_of_a_value_are_the_tokens_that_share_a_character_with_it(
    first: dict, second: dict, data: st.DataObject
) -> None:
    """Whatever the tokenizer: cuts anywhere, several values in one token, values of many tokens."""
    text = json.dumps({"bird_1": first, "bird_2": second, KEY: "no"}, ensure_ascii=False)
    cuts = data.draw(st.sets(st.integers(1, len(text) - 1)))
    ends = [*sorted(cuts), len(text)]
    token_of = [next(token for token, end in enumerate(ends) if place < end) for place in range(len(text))]
    for span in parse_answer(text, KEY).spans:
        assert tokens_between(ends, span.start, span.stop) == sorted(
            {token_of[place] for place in range(span.start, span.stop)}
        )


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
    assert tokens_between(ends, 4, 8) == [2, 3]
    assert tokens_between(ends, 3, 7) == [2]
    assert tokens_between(ends, 0, 12) == [0, 2, 3, 4]
