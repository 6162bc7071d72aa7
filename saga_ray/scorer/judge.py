"""What the completions say: texts, verdicts, and the rows whose attention counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from saga_ray.mllm.answers import NONE, Answer, parse_answer, tokens_of_span
from saga_ray.mllm.sampling import Completions
from saga_ray.mllm.text import TokenTexts


@dataclass(frozen=True)
class Judge:
    """Reads completions under one prompt."""

    token_texts: TokenTexts
    verdict_key: str
    rows_of: Literal["token", "predictor"]
    """Whose attention counts: the attribute token's own, or that of the position that predicts it."""

    def read(self, completions: Completions) -> tuple[list[str], list[Answer]]:
        """Texts without the end token, and what they say; a cut answer says nothing."""
        texts, answers = [], []
        for ids, has_end in zip(completions.token_ids_SR.tolist(), completions.ended_S.tolist(), strict=True):
            written = [i for i in ids if i >= 0]
            texts.append(self.token_texts.decode(written[:-1] if has_end else written))
            answers.append(parse_answer(texts[-1], self.verdict_key) if has_end else Answer(NONE))
        return texts, answers

    def attention_rows(
        self, completions: Completions, answers: list[Answer], rewards_PG: Tensor
    ) -> list[tuple[list[int], list[int]]]:
        """Per answer and image, the rows whose attention counts: those of attribute values in correct answers.

        Row i of an answer is fed token i - 1 and predicts token i (counted from 0; row 0 is fed the last prompt token).
        So a token looks from row i + 1, and its predictor from row i. The last token is never fed, but it is the end
        and describes nothing.
        """
        shift = 1 if self.rows_of == "token" else 0
        correct = (rewards_PG > 0).flatten().tolist()
        out = []
        for ids, answer, is_correct in zip(completions.token_ids_SR.tolist(), answers, correct, strict=True):
            rows: tuple[list[int], list[int]] = ([], [])
            if is_correct and answer.spans:
                ends = self.token_texts.ends([i for i in ids if i >= 0][:-1])
                for image in (0, 1):
                    tokens = {t for s in answer.spans if s.image == image for t in tokens_of_span(ends, s)}
                    rows[image].extend(sorted(t + shift for t in tokens))
            out.append(rows)
        return out
