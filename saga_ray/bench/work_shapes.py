"""How long prompts and answers are; needs neither torch nor configuration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkShape:
    """How long prompts and answers are, and how many."""

    grid_hw: tuple[int, int]
    """Visual tokens of one image."""
    before: int
    """Text tokens before the first image; the same for all pairs, so the scorer runs them once."""
    between: int
    after: int
    answer: int
    """R, forced: the end token is banned for everybody."""
    num_attributes: int
    """Of each image, where the answer is in JSON."""
    value: int
    """Tokens of a value, the ones that template answers draw, each among two; names of attributes take up the rest."""
    num_pairs: int = 2
    group_size: int = 8

    @property
    def own(self) -> int:
        """Prompt tokens that depend on the pair."""
        return 2 * self.grid_hw[0] * self.grid_hw[1] + self.between + self.after

    @property
    def prompt(self) -> int:
        """P, all of it."""
        return self.before + self.own


SHAPES = {
    "compact": WorkShape((16, 16), before=60, between=4, after=24, answer=64, num_attributes=3, value=3),
    "paper": WorkShape((7, 7), before=380, between=4, after=16, answer=700, num_attributes=28, value=4),
}
"""`notes`: short answers over large images, and the long JSON answers over 224 x 224 pixels of SAGA's paper."""


def words(start: int, num: int, vocabulary: int) -> str:
    """`num` words of the random tokenizer; the ends of its vocabulary are other words."""
    return " ".join(f"t{8 + (start + 7 * n) % (vocabulary - 24)}" for n in range(num))


def attributes(shape: WorkShape) -> dict[str, tuple[str, ...]]:
    """Names and allowed values whose template answers have exactly `shape.answer` tokens.

    `{"bird_1":{"` NAME `":"` VALUE `","` NAME `":"` VALUE ... `"},"bird_2":{"` ... `"},"same":"` yes `"}` and the end token.
    """
    # Around the names and values of one image: what opens it (3 tokens), `":"` behind a name, `","` between two attributes.
    frame = 2 * (3 + 2 * shape.num_attributes - 1) + len(('"},"', "same", '":"', "yes", '"}', "end"))
    left, odd = divmod(shape.answer - frame - 2 * shape.num_attributes * shape.value, 2)
    assert not odd and left >= shape.num_attributes, f"{shape} leaves {left} tokens for names"
    least, longer = divmod(left, shape.num_attributes)
    named: dict[str, tuple[str, ...]] = {}
    for number in range(shape.num_attributes):
        length = least + (number < longer)
        first = 10 + number
        named["".join(f"t{first + 31 * place}" for place in range(length))] = tuple(
            "".join(letters)
            for letters in itertools.product(
                *((f"t{first + 2 * p}", f"t{first + 2 * p + 1}") for p in range(shape.value))
            )
        )
    return named


def prompt_texts(shape: WorkShape, vocabulary: int) -> tuple[str, str, str]:
    """Texts of exactly the asked lengths; the marks around an image count."""
    return (
        words(1, shape.before - 1, vocabulary) + "<|vision_start|>",
        "<|vision_end|>" + words(2, shape.between - 2, vocabulary) + "<|vision_start|>",
        "<|vision_end|>" + words(3, shape.after - 1, vocabulary),
    )
