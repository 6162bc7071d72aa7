"""How long prompts and answers are; needs neither torch nor configuration."""

from __future__ import annotations

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
    "compact": WorkShape((16, 16), before=60, between=4, after=24, answer=64),
    "paper": WorkShape((7, 7), before=380, between=4, after=16, answer=700),
}
"""`notes`: short answers over large images, and the long JSON answers over 224 x 224 pixels of SAGA's paper."""


def words(start: int, num: int, vocabulary: int) -> str:
    """`num` words of the random tokenizer."""
    return " ".join(f"t{8 + (start + 7 * n) % (vocabulary - 8)}" for n in range(num))


def prompt_texts(shape: WorkShape, vocabulary: int) -> tuple[str, str, str]:
    """Texts of exactly the asked lengths; the marks around an image count."""
    return (
        words(1, shape.before - 1, vocabulary) + "<|vision_start|>",
        "<|vision_end|>" + words(2, shape.between - 2, vocabulary) + "<|vision_start|>",
        "<|vision_end|>" + words(3, shape.after - 1, vocabulary),
    )
