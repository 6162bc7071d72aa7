"""Vocabularies: the attributes that an MLLM is asked to describe, in the package or in a file of one's own.

An answer is read by its names and verdict key (`saga_ray.mllm.answers`), and compared by them without regard to case,
underscores and spaces. What would make answers ambiguous is refused here, one sentence per mistake.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from saga_ray.config import Config, RunConfig
from saga_ray.config.keys import nearest
from saga_ray.configure import ConfigError, file_digest, read_vocabulary
from saga_ray.mllm.answers import plain
from saga_ray.yaml_text import parse_yaml

RESERVED = ("differences", "confidence", "reasoning")
"""Keys of every answer beside its descriptions and its verdict."""
_OF_A_PROMPT_FILE = ("templates", "max_new_tokens")
"""Further keys of the prompt that an MLLM folder may carry; it holds a vocabulary as well."""
_BREAKS_JSON = re.compile(r'["\\\x00-\x1f]|<\|')
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NO_WORD = "is no word; put quotes around numbers and around yes, no, on, off, true, false and null"

Word = Annotated[str, Field(strict=True)]


class Vocabulary(Config):
    """What an MLLM is asked to describe, before it is asked.

    Example: `Vocabulary(role="ornithologist", item="bird", verdict_key="same_species", attributes={"size": ("small", "large")})`.
    """

    role: Word
    """Whose eyes the MLLM shall look with, as in "You are an experienced ornithologist"."""
    item: Word
    """What each picture shows; descriptions stand under `ITEM_1` and `ITEM_2`."""
    verdict_key: Word
    """Key of the verdict in an answer."""
    attributes: dict[Word, tuple[Word, ...] | None]
    """Names, and the values to choose from; null lets the MLLM use its own words."""

    @field_validator("attributes", mode="before")
    @classmethod
    def _from_names(cls, value: Any) -> Any:
        """A list of names is a mapping to free text."""
        if not isinstance(value, list):
            return value
        twice = [name for name, count in Counter(map(str, value)).items() if count > 1]
        if twice:
            raise ValueError(f"attributes: {twice[0]!r} stands twice; keep one")
        return dict.fromkeys(value)

    @model_validator(mode="after")
    def _can_be_read(self) -> Vocabulary:
        if problems := [*self._about_words(), *self._about_attributes()]:
            raise ValueError("\n".join(problems))
        return self

    def _about_words(self) -> Iterator[str]:
        for key, word in (("role", self.role), ("item", self.item)):
            if fault := _fault(word):
                yield f"{key}: {word!r} {fault}"
        if not _KEY.fullmatch(self.verdict_key) or self.verdict_key[-1] in "12" or self.verdict_key in RESERVED:
            yield (
                f"verdict_key: {self.verdict_key!r} cannot be told from the rest of an answer; use letters, digits and "
                f"underscores, another word than {', '.join(RESERVED)}, and no 1 or 2 at the end, which marks a description"
            )

    def _about_attributes(self) -> Iterator[str]:
        if not self.attributes:
            yield "attributes: is empty; list at least one name, with its values or without"
        by_plain: dict[str, str] = {}
        for name, values in self.attributes.items():
            other = by_plain.setdefault(plain(name), name)
            if other != name:
                yield f"attributes: {name!r} and {other!r} are one name when answers are read; rename or remove one"
            if fault := _fault(name):
                yield f"attributes: {name!r} {fault}"
            if plain(name) == plain(self.verdict_key):
                yield f"attributes: {name!r} is the verdict's key as well; rename one of the two"
            if values is not None:
                yield from (f"attributes.{name}: {problem}" for problem in _about_values(values))

    def to_yaml(self) -> str:
        """As a file that `load_vocabulary` reads."""
        values = self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def without(self, names: set[str]) -> Vocabulary:
        """The same with fewer attributes.

        Raises:
            ValueError: if none would be left.
        """
        kept = {name: values for name, values in self.attributes.items() if name not in names}
        if not kept:
            raise ValueError("attributes: none of its attributes would be left; keep at least one")
        return Vocabulary.model_validate(self.model_dump() | {"attributes": kept})


def _fault(word: str) -> str | None:
    if not word.strip():
        return "is empty; give it a word"
    if found := _BREAKS_JSON.search(word):
        return f"holds {found.group()!r}, which breaks prompt or answer; leave it out"
    return None


def _about_values(values: tuple[str, ...]) -> Iterator[str]:
    if len(values) < 2:
        yield f"{list(values)!r} leaves no choice; give two values or more, or none at all for free text"
    by_plain: dict[str, str] = {}
    for value in values:
        if plain(value) in by_plain:
            other = by_plain[plain(value)]
            same = "stands twice" if other == value else f"and {other!r} are one value when answers are read"
            yield f"value {value!r} {same}; keep one"
        by_plain.setdefault(plain(value), value)
        if fault := _fault(value):
            yield f"value {value!r} {fault}"
        elif "," in value:
            yield f"value {value!r} holds a comma, which separates values in the prompt; write it without"


def load_vocabulary(name: str, digest: str | None = None, content: bytes | None = None) -> tuple[Vocabulary, str]:
    """The vocabulary of that name in the package, or in a file of one's own, and where it came from.

    Args:
        digest: As `prompt.vocabulary_digest`: the content that is meant.
        content: Of the file, where another process has read it; None reads it.

    Raises:
        ValueError: every mistake at once, one sentence per line with file and key; or other content than is meant.
    """
    source = name
    if content is None:
        content, source = vocabulary_content(name, digest)
    else:
        _check_digest(source, file_digest(content), digest)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: is not UTF-8 text; name a YAML file") from None
    return parse_vocabulary(text, source), source


def vocabulary_content(name: str, digest: str | None = None) -> tuple[bytes, str]:
    """What a vocabulary's file holds, and where it was found; arguments and errors as of `load_vocabulary`."""
    content, source, found = read_vocabulary(name)
    _check_digest(source, found, digest)
    return content, source


def own_words(config: RunConfig) -> bytes | None:
    """Content of the vocabulary's file that a configuration names, to travel where the file is not; None if it names none.

    Raises:
        ValueError: if it cannot be read here, or has changed.
    """
    if config.prompt.vocabulary is None:
        return None
    try:
        return vocabulary_content(config.prompt.vocabulary, config.prompt.vocabulary_digest)[0]
    except ConfigError as error:
        raise ConfigError(f"prompt.vocabulary: {error}") from None


def _check_digest(source: str, found: str, meant: str | None) -> None:
    if meant is not None and found != meant:
        raise ValueError(
            f"prompt.vocabulary: {source} has changed since this run was configured (digest {found}, not {meant}); "
            f"bring the old words back, or start a run under another name"
        )


def parse_vocabulary(text: str, source: str) -> Vocabulary:
    """A vocabulary from YAML.

    Raises:
        ConfigError: every mistake at once, one sentence per line.
    """
    values = parse_yaml(text, source)
    if not isinstance(values, dict):
        needed = ", ".join(Vocabulary.model_fields)
        raise ConfigError(f"{source}: holds no mapping of keys; give {needed}")
    return checked_vocabulary({key: value for key, value in values.items() if key not in _OF_A_PROMPT_FILE}, source)


def checked_vocabulary(values: Mapping[str, Any], source: str) -> Vocabulary:
    """A vocabulary from its values.

    Raises:
        ConfigError: every mistake at once, one sentence per line.
    """
    try:
        return Vocabulary.model_validate(values)
    except ValidationError as error:
        lines = [line for item in error.errors() for line in _sentences(item)]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _sentences(item: Any) -> list[str]:
    """One or more sentences for what pydantic found at one place."""
    place = ".".join(str(part) for part in item["loc"] if part != "[key]")
    match item["type"]:
        case "value_error":
            return item["msg"].removeprefix("Value error, ").splitlines()
        case "missing":
            return [f"{place}: is missing; give it"]
        case "extra_forbidden":
            return [f"unknown key '{place}'{nearest(place, Vocabulary.model_fields)}"]
        case "string_type":
            return [f"{place}: {item['input']!r} {_NO_WORD}"]
        case "tuple_type":
            return [f"{place}: {item['input']!r} is no list of values; write [one, another], or nothing for free text"]
        case "dict_type":
            return [f"{place}: {item['input']!r} is no mapping; list names, with their values or without"]
    return [f"{place}: {item['input']!r} is not accepted: {item['msg']}"]
