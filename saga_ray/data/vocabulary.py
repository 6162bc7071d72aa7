"""Vocabularies: the attributes that the MLLM is asked about, per kind of thing, as YAML in this package or a user's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from saga_ray.configure import load_yaml, nearest, parse_yaml

VOCABULARIES = ("birds", "cars", "aircraft", "generic")
OF_DATASET: Mapping[str, str] = {
    "demo": "birds",
    "cub": "birds",
    "inat-aves": "birds",
    "cars": "cars",
    "aircraft": "aircraft",
    "folder": "generic",
}
"""The shipped vocabulary of each data set."""
_KEYS = ("role", "item", "verdict_key", "verdict_words", "attributes")


@dataclass(frozen=True)
class Vocabulary:
    """What to ask about two photographs of one kind of thing.

    Example: `load_vocabulary("birds").attributes["bill length"]` is a tuple of three phrases.
    """

    role: str
    """Whom the MLLM plays."""
    item: str
    """Word for the thing, also the start of JSON keys: `bird` gives `bird_1` and `bird_2`."""
    verdict_key: str
    """JSON key of the verdict."""
    verdict_words: tuple[str, str]
    """The verdict's values for same and different."""
    attributes: Mapping[str, tuple[str, ...] | None]
    """Names in the order of the prompt, with the allowed values where they are fixed."""


def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """A shipped vocabulary by its name, or a YAML file of the same form by its path.

    Raises:
        ValueError: naming name or file and key, the value seen and what to do.
    """
    name = str(name_or_path)
    if name in VOCABULARIES:
        source = f"vocabulary '{name}'"
        text = files("saga_ray.data").joinpath("vocabularies", f"{name}.yaml").read_text(encoding="utf-8")
        return _checked(parse_yaml(text, source), source)
    if not Path(name).suffix and not Path(name).exists():
        raise ValueError(
            f"vocabulary '{name}' is unknown{nearest(name, VOCABULARIES)} (known: {', '.join(VOCABULARIES)}, or the path of a YAML file)"
        )
    return _checked(load_yaml(name), name)


def _checked(values: Mapping[str, Any], source: str) -> Vocabulary:
    for key in values:
        if key not in _KEYS:
            raise ValueError(f"{source}: unknown key '{key}'{nearest(str(key), _KEYS)}")
    words: dict[str, str] = {}
    for key in ("role", "item", "verdict_key"):
        words[key] = _text(values.get(key), f"{source}: {key}")
    for key in ("item", "verdict_key"):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", words[key]):
            raise ValueError(
                f"{source}: {key} is '{words[key]}', but becomes part of JSON keys; use small letters, digits and _"
            )
    verdicts = values.get("verdict_words", ["yes", "no"])
    if not isinstance(verdicts, list) or len(verdicts) != 2 or verdicts[0] == verdicts[1]:
        raise ValueError(f"{source}: verdict_words is {verdicts!r}; give two words, for same and for different")
    same, different = (_text(word, f"{source}: verdict_words") for word in verdicts)
    return Vocabulary(
        **words, verdict_words=(same, different), attributes=_attributes(values.get("attributes"), source)
    )


def _attributes(attributes: Any, source: str) -> dict[str, tuple[str, ...] | None]:
    if isinstance(attributes, list):
        attributes = dict.fromkeys(_text(name, f"{source}: attributes") for name in attributes)
    if not isinstance(attributes, Mapping) or not attributes:
        raise ValueError(f"{source}: attributes is {attributes!r}; list at least one name, with its values or without")
    out: dict[str, tuple[str, ...] | None] = {}
    for name, allowed in attributes.items():
        key = f"{source}: attributes.{name}"
        if allowed is None:
            out[_text(name, key)] = None
            continue
        if not isinstance(allowed, list) or len(allowed) < 2:
            raise ValueError(f"{key} is {allowed!r}; list two values or more, or none")
        phrases = tuple(_text(value, key) for value in allowed)
        if len(set(phrases)) < len(phrases):
            raise ValueError(f"{key} names a value twice; keep one")
        out[_text(name, key)] = phrases
    return out


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 200 or "\n" in value:
        hint = " in quotes" if isinstance(value, bool | int | float) else ""
        raise ValueError(f"{key}: {value!r} is not a word or phrase; write one{hint}, at most 200 characters")
    return value.strip()
