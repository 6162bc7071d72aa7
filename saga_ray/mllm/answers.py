"""Read what the MLLM wrote: the verdict, and which characters describe which image.

An answer is one JSON object, possibly inside a code fence or between other words. The verdict is the string "yes" or
"no" under the prompt's verdict key, nothing else. Descriptions are the objects under keys that end in 1 and 2
(`bird_1`, `bird_2`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.decoder import JSONDecodeError, scanstring
from typing import Any

SAME, DIFFERENT, NONE = 1, 0, -1
_VERDICTS = {"yes": SAME, "no": DIFFERENT}
_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null")
_MAX_DEPTH = 16


@dataclass(frozen=True)
class Span:
    """Characters start .. stop - 1 of an answer are a value that describes image 0 or 1.

    Example: in `{"bird_1": {"bill": "long"}, "same": "no"}` the value `long` is `Span(0, "bill", 21, 25)`.
    """

    image: int
    attribute: str
    start: int
    stop: int


@dataclass(frozen=True)
class Answer:
    """What could be read from one completion."""

    verdict: int
    """1 same, 0 different, -1 none."""
    spans: tuple[Span, ...] = ()
    verdict_at: tuple[int, int] | None = None
    """First character of the verdict's word, and the one behind it; None if it stands twice."""

    def descriptions(self, text: str) -> tuple[dict[str, str], dict[str, str]]:
        """What `text`, from which this was read, says of each image: attribute to value; parts of a list are joined by `, `."""
        said: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for span in self.spans:
            before = said[span.image].get(span.attribute)
            value = _unescaped(text[span.start : span.stop])
            said[span.image][span.attribute] = value if before is None else f"{before}, {value}"
        return said


class _Broken(Exception):
    """JSON that does not go on as JSON."""


@dataclass(frozen=True)
class _Member:
    key: str
    value: Any
    start: int
    stop: int


class _Object(list[_Member]):
    """Members in order, repeated keys kept."""


def parse_answer(text: str, verdict_key: str) -> Answer:
    """Read verdict and descriptions from a completion.

    Text around the object is ignored. No verdict: no complete object, no verdict key at its top level, another value
    than "yes" or "no", or both of them. A repeated attribute counts once, with its last value, as JSON readers do.
    """
    try:
        objects = _objects(text)
    except _Broken:
        return Answer(NONE)
    members = [m for found in objects for m in found if m.key == verdict_key]
    known = {_VERDICTS.get(m.value, NONE) if isinstance(m.value, str) else NONE for m in members}
    if len(known) != 1 or NONE in known:
        return Answer(NONE)
    judged = next(found for found in objects if any(m.key == verdict_key for m in found))
    place = (members[0].start + 1, members[0].stop - 1) if len(members) == 1 else None
    return Answer(known.pop(), tuple(_spans(judged)), place)


def plain(word: str) -> str:
    """A name or value as it is compared: "Crown_color" is "crown color"."""
    return " ".join(str(word).replace("_", " ").casefold().split())


def _unescaped(inside: str) -> str:
    """What stands between the quotes of a JSON string, read; other scalars stay as they are written."""
    return _sound(scanstring(f'{inside}"', 0, False)[0])


def _sound(text: str) -> str:
    r"""Half a surrogate pair ("\ud83d" alone) is no character: no file could hold it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def written_answer(
    keys: tuple[str, str],
    first: Mapping[str, str],
    second: Mapping[str, str],
    differences: Sequence[str] | None,
    verdict_key: str,
    same: bool,
) -> str:
    """An answer in form, as compact JSON: the form that the demo MLLM writes, and that `parse_answer` reads.

    Args:
        keys: Of both descriptions.
        differences: None leaves the key out.
    """
    answer: dict[str, Any] = {keys[0]: dict(first), keys[1]: dict(second)}
    if differences is not None:
        answer["differences"] = list(differences)
    return json.dumps(answer | {verdict_key: "yes" if same else "no"}, separators=(",", ":"), ensure_ascii=False)


def _spans(judged: _Object) -> list[Span]:
    spans: dict[tuple[int, str], list[Span]] = {}
    for member in judged:
        image = {"1": 0, "2": 1}.get(member.key[-1:])
        if image is not None and isinstance(member.value, _Object):
            for inner in member.value:
                spans[image, inner.key] = [Span(image, inner.key, *place) for place in _leaves(inner)]
    return [span for found in spans.values() for span in found]


def _leaves(member: _Member) -> list[tuple[int, int]]:
    """Places of the non-empty scalars in a member's value, without quotes."""
    if isinstance(member.value, list):  # an object or an array, whose items are members without a key
        return [place for inner in member.value for place in _leaves(inner)]
    if member.value is None:
        return []
    inset = int(isinstance(member.value, str))
    start, stop = member.start + inset, member.stop - inset
    return [(start, stop)] if stop > start else []


def _objects(text: str) -> list[_Object]:
    """All complete objects that stand side by side in `text`."""
    found, place = [], 0
    while (start := text.find("{", place)) >= 0:
        inside = _skip(text, start + 1)
        if text[inside : inside + 1] not in ('"', "}"):
            place = start + 1  # a brace in prose
            continue
        value, place = _value(text, start, 0)
        found.append(value)
    return found


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def _expect(text: str, place: int, character: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != character:
        raise _Broken
    return place + 1


def _string(text: str, place: int) -> tuple[str, int]:
    place = _expect(text, place, '"')
    try:
        word, place = scanstring(text, place, False)
        return _sound(word), place
    except JSONDecodeError:
        raise _Broken from None


def _value(text: str, place: int, depth: int) -> tuple[Any, int]:
    """The JSON value at `place`, and where it ends."""
    if depth > _MAX_DEPTH:
        raise _Broken
    place = _skip(text, place)
    opening = text[place : place + 1]
    if opening == '"':
        return _string(text, place)
    if opening in ("{", "["):
        return _members(text, place + 1, depth, "}" if opening == "{" else "]")
    match = _SCALAR.match(text, place)
    if match is None:
        raise _Broken
    # Numbers and booleans describe, null does not; which one it was matters to nobody.
    return None if match.group() == "null" else True, match.end()


def _members(text: str, place: int, depth: int, closing: str) -> tuple[list[_Member], int]:
    members: list[_Member] = _Object() if closing == "}" else []
    place = _skip(text, place)
    if text[place : place + 1] == closing:
        return members, place + 1
    while True:
        key = ""
        if closing == "}":
            key, place = _string(text, place)
            place = _expect(text, place, ":")
        start = _skip(text, place)
        value, place = _value(text, start, depth + 1)
        members.append(_Member(key, value, start, place))
        place = _skip(text, place)
        if text[place : place + 1] == closing:
            return members, place + 1
        place = _expect(text, place, ",")


def tokens_between(ends: Sequence[int], start: int, stop: int) -> list[int]:
    """Tokens that hold at least one of the characters start .. stop - 1.

    Args:
        ends: Number of characters after each token; token i holds characters ends[i - 1] .. ends[i] - 1.
    """
    starts = [0, *ends[:-1]]
    return [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < stop and b > start and b > a]
