"""The form of a template answer, in characters: values in their order, and what stands between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from saga_ray.mllm.answers import NONE, SAME, parse_answer, plain
from saga_ray.mllm.prompt import Prompt, description_keys

MOST_DIFFERENCES = 4
"""Attributes listed as differences, where an answer has to list them; the demo MLLM was taught no more."""
TOP, DIFFERENCES, VERDICT = "", "differences", "verdict"

Slot = tuple[str, str]
"""Key of the description, or TOP for what stands beside the descriptions, and name of the value."""


@dataclass(frozen=True)
class AnswerForm:
    """Compact JSON: descriptions of both images (or, for a generic prompt, differences in words), then the verdict."""

    prompt: Prompt
    lists_differences: bool = False
    """Names of attributes that were described differently stand before the verdict; they follow from the values."""

    @cached_property
    def words(self) -> dict[Slot, tuple[str, ...] | None]:
        """Allowed words of every value in the order of the answer; None where the words are open."""
        return dict(self._slots())

    def _slots(self) -> Iterator[tuple[Slot, tuple[str, ...] | None]]:
        if self.prompt.variant == "generic":
            yield (TOP, DIFFERENCES), None
        else:
            for key in description_keys(self.prompt):
                for name, words in self.prompt.attributes.items():
                    yield (key, name), words
        yield (TOP, VERDICT), ("yes", "no")

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Values in the order of the answer."""
        return tuple(self.words)

    def depends_on_values(self, number: int) -> bool:
        """True if the text before slot `number` does."""
        return self.lists_differences and self.slots[number : number + 1] == ((TOP, VERDICT),)

    def text_before(self, number: int, values: Mapping[Slot, str], apart: Sequence[str] | None = None) -> str:
        """What stands before slot `number`, or behind the last one, beginning with the quote that ends the slot before.

        Args:
            values: What stands in the slots before.
            apart: Listed as differences in place of those that `values` say.
        """
        before = self.slots[number - 1] if number else None
        if number == len(self.slots):
            return '"}'
        key, name = self.slots[number]
        start = "{" if before is None else '"'
        if key and before is not None and before[0] == key:
            return f'{start},{quoted(name)}:"'
        if key:
            return f'{start}{"" if before is None else "},"}{quoted(key)}:{{{quoted(name)}:"'
        inside = "" if before is None else "}," if before[0] else ","
        if self.depends_on_values(number):
            names = self._apart(values) if apart is None else apart
            inside += f'"differences":[{",".join(quoted(name) for name in names[:MOST_DIFFERENCES])}],'
        return f'{start}{inside}{quoted(self.prompt.verdict_key if name == VERDICT else name)}:"'

    def with_gaps(self) -> str:
        """An answer with `<name>` in place of every value."""
        gaps = (f"{self.text_before(n, {}, apart=['...'])}<{name}>" for n, (_, name) in enumerate(self.slots))
        return "".join(gaps) + self.text_before(len(self.slots), {})

    def _apart(self, values: Mapping[Slot, str]) -> list[str]:
        """Attributes that were described differently."""
        first, second = description_keys(self.prompt)
        return [name for name in self.prompt.attributes if values.get((first, name)) != values.get((second, name))]

    def values_of(self, text: str) -> dict[Slot, str]:
        """What an answer in any form says, slot by slot: allowed words where they are fixed.

        Raises:
            ValueError: for an answer that leaves a value out, or gives one that is not allowed.
        """
        answer = parse_answer(text, self.prompt.verdict_key)
        if answer.verdict == NONE:
            raise not_in_form(text, f"verdict under {self.prompt.verdict_key!r}")
        said = dict(zip(description_keys(self.prompt), answer.descriptions(text), strict=True))
        found = {(key, plain(name)): word.strip() for key, of_image in said.items() for name, word in of_image.items()}
        found[TOP, VERDICT] = "yes" if answer.verdict == SAME else "no"
        if self.prompt.variant == "generic":
            found[TOP, DIFFERENCES] = _differences(text)
        values: dict[Slot, str] = {}
        for (key, name), words in self.words.items():
            word = found.get((key, plain(name)), "")
            if words is not None:
                word = next((each for each in words if plain(each) == plain(word)), "")
            if not word:
                raise not_in_form(text, f"allowed value of {'.'.join(filter(None, (key, name)))}")
            values[key, name] = word
        return values


def not_in_form(text: str, missing: str) -> ValueError:
    """What to say of a given answer that cannot be brought into the form."""
    return ValueError(
        f"answers: {text[:200]!r} gives no {missing}, which template answers need; complete it, or set prompt.answers=free"
    )


def _differences(text: str) -> str:
    """What a generic answer gives as differences."""
    try:
        found = json.loads(text)["differences"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ", ".join(map(str, found)) if isinstance(found, list) else ""


@lru_cache(maxsize=4096)
def quoted(word: str) -> str:
    """As a JSON string."""
    return json.dumps(word, ensure_ascii=False)


def inside(word: str) -> str:
    """The same without its quotes."""
    return quoted(word)[1:-1]
