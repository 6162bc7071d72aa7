"""Where the frozen MLLM looks while it writes given answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saga_ray.types import ImagePair, ScoreOptions, Scorer, ScoreRequest, VisualTokens


def attention_of(
    scorer: Scorer, seed: int, pairs: Sequence[ImagePair], tokens: VisualTokens, texts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Attention of the words that describe the images, for one answer about each pair.

    A scorer reads the attention of correct answers of pairs that disagree. So every answer is handed in twice, once called
    right and once called wrong: then it is read whatever its verdict was.

    Returns:
        Sums over words (P, 2, T), and how many words (P, 2) are in each.
    """
    answers = tuple((text, text) for text in texts)
    rewards_PG = torch.tensor([[1.0, 0.0]]).repeat(len(answers), 1)
    options = ScoreOptions(gradient=False)
    result = scorer.score(ScoreRequest(seed, 0, tuple(pairs), tokens, options, answers, rewards_PG))
    return result.attention_sum_P2T, result.attention_count_P2
