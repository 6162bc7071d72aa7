"""What attributes cost: tokens of an answer, by the attribute that they were written for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from saga_ray.mllm.answers import Span, parse_answer, written_answer
from saga_ray.mllm.text import TokenTexts
from saga_ray.mllm.vocabulary import Vocabulary
from saga_ray.vocab.words import normal_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FREE_TEXT = "a few words"
"""Stands for a value that the MLLM words itself."""


@dataclass(frozen=True)
class Cost:
    """Tokens of an answer in form whose attributes take each of their values in turn."""

    attributes: dict[str, tuple[float, int, int]]
    """Tokens of one description: mean, least and most over the values."""
    answer: float
    """Mean of a whole answer without differences: two descriptions, the verdict and what stands around them."""

    @property
    def description(self) -> float:
        """Mean of one description."""
        return sum(mean for mean, _, _ in self.attributes.values())


def tokens_by_attribute(text: str, ends: Sequence[int], spans: Iterable[Span]) -> dict[tuple[int, str], int]:
    """Tokens that an answer spends on each attribute of each image.

    An attribute's stretch begins behind the value before it, or behind the brace that opens the description, and ends with
    its own value: key and punctuation are its own. A token belongs to the stretch that holds its last character, so no
    token counts twice; what lies between is nobody's.

    Args:
        text: The answer.
        ends: Characters of `text` up to the end of each token.
        spans: Of its values, from `parse_answer`.

    Returns:
        {(image, attribute as `normal_name` writes it): tokens}.
    """
    last_characters = np.asarray(ends) - 1
    written: dict[tuple[int, str], int] = {}
    image, before = -1, 0
    ordered = sorted(spans, key=lambda span: span.start)
    for (of_image, attribute), parts in groupby(ordered, key=lambda span: (span.image, span.attribute)):
        places = list(parts)
        start = before if of_image == image else text.rfind("{", 0, places[0].start) + 1
        image, before = of_image, places[-1].stop
        key = (image, normal_name(attribute))
        written[key] = written.get(key, 0) + int(((last_characters >= start) & (last_characters < before)).sum())
    return written


def typical_cost(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> Cost | None:
    """What answers in form cost, or None if the tokenizer has no tokens for some of the words.

    Answers are compact JSON, as the demo MLLM writes it; another MLLM may put spaces between. Free text counts as
    FREE_TEXT.
    """
    texts, by_value, lengths = TokenTexts(tokenizer), {name: {} for name in vocabulary.attributes}, []
    item = vocabulary.item.replace(" ", "_")
    choices = {name: values or (FREE_TEXT,) for name, values in vocabulary.attributes.items()}
    for number in range(max(map(len, choices.values()))):
        words = {name: values[number % len(values)] for name, values in choices.items()}
        text = written_answer((f"{item}_1", f"{item}_2"), words, words, [], vocabulary.verdict_key, True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        if texts.decode(ids) != text:
            return None
        lengths.append(len(ids))
        found = tokens_by_attribute(text, texts.ends(ids), parse_answer(text, vocabulary.verdict_key).spans)
        for name, word in words.items():
            # The second description: the first shares a token with what stands before it.
            by_value[name][word] = found.get((1, normal_name(name)), 0)
    counts = {name: list(tokens.values()) for name, tokens in by_value.items()}
    costs = {name: (float(np.mean(each)), min(each), max(each)) for name, each in counts.items()}
    return Cost(costs, float(np.mean(lengths)))
