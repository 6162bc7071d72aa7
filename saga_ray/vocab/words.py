"""When two names, or two values, of different vocabularies mean the same."""

from __future__ import annotations

import re

from saga_ray.mllm.answers import plain

_SPELLINGS = {"grey": "gray", "colour": "color", "coloured": "colored"}
_REMARK = re.compile(r"\([^)]*\)")
_EMPTY = ("like",)
"""Words that say nothing in a value: "owl-like"."""


def _words(text: str) -> list[str]:
    words = plain(_REMARK.sub(" ", text).replace("-", " ")).split()
    return [_SPELLINGS.get(word, word) for word in words]


def normal_name(name: str) -> str:
    """An attribute's name as it is matched: "has_bill_shape" is "bill shape"."""
    words = _words(name)
    return " ".join(words[1:] if words[:1] == ["has"] and len(words) > 1 else words)


def normal_value(value: str, name: str) -> str:
    """A value as it is matched: "forked_tail" of a tail's shape is "forked", "large_(16_-_32_in)" is "large".

    Remarks in brackets are left out, and so are words of the attribute's name, in singular and plural, unless nothing else
    would be left.
    """
    words = _words(value)
    needless = {*normal_name(name).split(), *_EMPTY}
    needless |= {f"{word}s" for word in needless}
    return " ".join([word for word in words if word not in needless] or words)
