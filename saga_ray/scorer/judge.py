"""What the completions say: texts, verdicts, and the rows whose attention counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saga_ray.mllm.answers import NONE, Answer, parse_answer, tokens_between
from saga_ray.mllm.sampling import Completions
from saga_ray.mllm.text import TokenTexts
from saga_ray.scorer.signals import Verdicts


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
        correct = (rewards_PG > 0).flatten().tolist()
        shift = 1 if self.rows_of == "token" else 0
        out = []
        for ids, answer, is_correct in zip(completions.token_ids_SR.tolist(), answers, correct, strict=True):
            first, second = self._described(ids, answer) if is_correct else ([], [])
            out.append(([token + shift for token in first], [token + shift for token in second]))
        return out

    def value_tokens(self, completions: Completions, answers: list[Answer]) -> list[list[int]]:
        """Per answer, the numbers of the tokens that are attribute values of either image."""
        rows = zip(completions.token_ids_SR.tolist(), answers, strict=True)
        return [sorted({t for image in self._described(ids, answer) for t in image}) for ids, answer in rows]

    def _described(self, ids: list[int], answer: Answer) -> tuple[list[int], list[int]]:
        """Numbers of an answer's tokens that describe image 1 and image 2."""
        tokens: tuple[set[int], set[int]] = (set(), set())
        if answer.spans:
            ends = self.token_texts.ends([i for i in ids if i >= 0][:-1])
            for span in answer.spans:
                tokens[span.image].update(tokens_between(ends, span.start, span.stop))
        return sorted(tokens[0]), sorted(tokens[1])

    def verdicts(self, completions: Completions, answers: list[Answer], same_P: Sequence[bool]) -> Verdicts:
        """Where each answer says its verdict, and the tokens that would be right there."""
        num_answers = len(answers) // max(1, len(same_P))
        places: list[int] = []
        rights: list[list[int]] = []
        for row, (ids, answer) in enumerate(zip(completions.token_ids_SR.tolist(), answers, strict=True)):
            same = bool(same_P[row // num_answers])
            place, right = -1, []
            if answer.verdict_at is not None and completions.sets_SR is not None:
                place, right = _drawn_verdict(completions, row, answer.verdict == int(same))
            elif answer.verdict_at is not None:
                written = [i for i in ids if i >= 0][:-1]
                found = self.token_texts.with_word(written, *answer.verdict_at, "yes" if same else "no")
                place, right = found or (-1, [])
            places.append(place)
            rights.append(right)
        widest = max([1, *map(len, rights)])
        device = completions.token_ids_SR.device
        padded = [right + [-1] * (widest - len(right)) for right in rights]
        return Verdicts(
            torch.tensor(places, device=device), torch.tensor(padded, device=device).view(len(answers), widest)
        )

    def can_correct_verdicts(self) -> bool:
        """True if each verdict of a freely written answer can be put in the other's place, token by token."""
        for verdict, other in (("yes", "no"), ("no", "yes")):
            text = f'{{"{self.verdict_key}":"{verdict}"}}'
            ids = self._readable_end(self.token_texts.encode(text), text)
            start = self.token_texts.decode(ids).rfind(verdict)
            if start < 0 or self.token_texts.with_word(ids, start, start + len(verdict), other) is None:
                return False
        return True

    def _readable_end(self, ids: list[int], text: str) -> list[int]:
        """The longest end of the ids that reads as `text` ends: the demo MLLM has no tokens for the beginning alone."""
        return next((ids[i:] for i in range(len(ids)) if text.endswith(self.token_texts.decode(ids[i:]))), [])


def _drawn_verdict(completions: Completions, row: int, is_right: bool) -> tuple[int, list[int]]:
    """Of a template answer: the last token that was drawn decides between two words, and only one other was allowed there."""
    assert completions.sets_SR is not None and completions.table_AV is not None
    place = int((completions.sets_SR[row] >= 0).nonzero()[-1, 0])
    written = int(completions.token_ids_SR[row, place])
    allowed = completions.table_AV[completions.sets_SR[row, place]].nonzero()[:, 0].tolist()
    (other,) = (token for token in allowed if token != written)
    return place, [written if is_right else other]
