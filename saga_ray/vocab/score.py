"""Which attributes of a vocabulary decide verdicts, which are not answered, and which cost tokens for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from saga_ray.leaderboard.statistics import holm
from saga_ray.mllm.answers import parse_answer
from saga_ray.mllm.text import TokenTexts
from saga_ray.vocab.cost import tokens_by_attribute
from saga_ray.vocab.information import information
from saga_ray.vocab.words import normal_name, normal_value

if TYPE_CHECKING:
    from saga_ray.mllm.prompt import Prompt
    from saga_ray.train.naming import Questions
    from saga_ray.types import ScoreResult

SELDOM = 0.5
"""An attribute that fewer descriptions name is called seldom answered."""
LEAST_BITS = 0.02
"""An attribute that surely tells less costs its tokens for nothing."""
CERTAIN = 0.05
_FOLDS = 5

Finding = Literal["decides", "open", "for nothing", "seldom answered", "never answered"]
DROPPED: tuple[Finding, ...] = ("for nothing", "seldom answered", "never answered")


@dataclass(frozen=True)
class AttributeScore:
    """One attribute over all well-formed answers. Shares are in [0, 1]."""

    name: str
    finding: Finding
    bits: float
    """What "the two values differ" tells about "the classes differ", less what chance tells."""
    low: float
    high: float
    """95 % interval over pairs."""
    p: float
    """Of telling anything, corrected for the number of attributes (Holm)."""
    verdict_bits: float
    """What it tells about the MLLM's own verdict."""
    answered: float
    """Descriptions that give it a value."""
    listed: float | None
    """Values given that are among those to choose from; None for free text, or where none was given."""
    differs_same: float | None
    """Answers with two values, about pairs of one class, in which they differ."""
    differs_different: float | None
    """The same of pairs of two classes."""
    tokens: float
    """Mean per answer, both descriptions."""


@dataclass(frozen=True)
class VocabularyScore:
    """A vocabulary judged by sampled answers."""

    attributes: tuple[AttributeScore, ...]
    num_pairs: int
    num_answers: int
    well_formed: float
    tokens: float
    """Mean of a well-formed answer."""
    told: float | None
    """Share of pairs told same from different by all written differences together, by a cross-validated logistic regression."""
    told_without: float | None
    """The same without the attributes that are dropped."""

    @property
    def dropped(self) -> tuple[AttributeScore, ...]:
        """Attributes that the answers give no reason to keep."""
        return tuple(each for each in self.attributes if each.finding in DROPPED)

    @property
    def tokens_without(self) -> float:
        """Mean tokens of an answer that leaves the dropped attributes out of both descriptions and is else the same."""
        return self.tokens - sum(each.tokens for each in self.dropped)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return asdict(self) | {
            "dropped": [each.name for each in self.dropped],
            "tokens_without": self.tokens_without,
        }


@dataclass(frozen=True)
class _Read:
    """What P x G answers say of A attributes."""

    differs_PGA: np.ndarray
    """1 if the two values differ, 0 if not, NaN without two values."""
    named_PGA: np.ndarray
    """Descriptions, 0 to 2, that give a value."""
    listed_PGA: np.ndarray
    """Of these, with a value among those to choose from."""
    tokens_PGA: np.ndarray
    whole_PG: np.ndarray
    """bool: the answer is well formed; the rest says nothing."""


def score_vocabulary(
    result: ScoreResult, questions: Questions, prompt: Prompt, texts: TokenTexts, *, least_bits: float = LEAST_BITS
) -> VocabularyScore:
    """Judge a vocabulary by what the MLLM answered.

    Args:
        result: Answers, gradients not needed.
        questions: The pairs that they are about.
        prompt: Structured; what was asked.
        texts: Of the tokenizer that wrote them.

    Raises:
        ValueError: if no answer is well formed.
    """
    read = _read(result, prompt, texts)
    if not read.whole_PG.any():
        raise ValueError(
            "mllm.path: none of the answers is well formed, so nothing can be said about the vocabulary; look at some with "
            "`saga-ray mllm try A.jpg B.jpg`, and raise grpo.max_new_tokens if they are cut"
        )
    differ_P = np.array([not pair.same_class for pair in questions.pairs])
    scores = _attribute_scores(read, prompt, differ_P, result.verdicts_PG.cpu().numpy(), least_bits)
    kept_A = np.array([each.finding not in DROPPED for each in scores])
    return VocabularyScore(
        attributes=tuple(scores),
        num_pairs=len(questions.pairs),
        num_answers=read.whole_PG.shape[1],
        well_formed=float(read.whole_PG.mean()),
        tokens=float(result.num_tokens_PG.cpu().numpy()[read.whole_PG].mean()),
        told=_told(read.differs_PGA, differ_P),
        told_without=_told(read.differs_PGA[:, :, kept_A], differ_P),
    )


def _attribute_scores(
    read: _Read, prompt: Prompt, differ_P: np.ndarray, verdicts_PG: np.ndarray, least_bits: float
) -> list[AttributeScore]:
    told = [information(*_yes_and_num(read.differs_PGA[:, :, a]), differ_P) for a in range(len(prompt.attributes))]
    ps, scores = holm([each.p for each in told]), []
    for a, (name, values) in enumerate(prompt.attributes.items()):
        differs_PG, num_named = read.differs_PGA[:, :, a], read.named_PGA[:, :, a].sum()
        answered = float(num_named / (2 * read.whole_PG.sum()))
        scores.append(
            AttributeScore(
                name=name,
                finding=_finding(answered, ps[a], told[a].high, least_bits),
                bits=told[a].bits,
                low=told[a].low,
                high=told[a].high,
                p=ps[a],
                verdict_bits=_verdict_bits(differs_PG, verdicts_PG),
                answered=answered,
                listed=float(read.listed_PGA[:, :, a].sum() / num_named) if values and num_named else None,
                differs_same=_mean(differs_PG[~differ_P]),
                differs_different=_mean(differs_PG[differ_P]),
                tokens=float(read.tokens_PGA[read.whole_PG, a].mean()),
            )
        )
    return scores


def _finding(answered: float, p: float, high: float, least_bits: float) -> Finding:
    if answered == 0:
        return "never answered"
    if p < CERTAIN:
        return "decides"
    if answered < SELDOM:
        return "seldom answered"
    return "for nothing" if high < least_bits else "open"


def _read(result: ScoreResult, prompt: Prompt, texts: TokenTexts) -> _Read:
    whole_PG = result.well_formed_PG.cpu().numpy()
    shape = (*whole_PG.shape, len(prompt.attributes))
    differs, named, listed, tokens = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    names = [normal_name(name) for name in prompt.attributes]
    allowed = {
        normal_name(name): {normal_value(value, name) for value in values or ()}
        for name, values in prompt.attributes.items()
    }
    for p, g in np.argwhere(whole_PG):
        text = result.texts_PG[p][g]
        answer = parse_answer(text, prompt.verdict_key)
        said = [_plain_words(words) for words in answer.descriptions(text)]
        ids = [token for token in result.token_ids_PGR[p, g].tolist() if token >= 0][:-1]
        spent = tokens_by_attribute(text, texts.ends(ids), answer.spans)
        for a, name in enumerate(names):
            given = [words[name] for words in said if name in words]
            named[p, g, a] = len(given)
            listed[p, g, a] = sum(value in allowed[name] for value in given)
            tokens[p, g, a] = sum(spent.get((image, name), 0) for image in (0, 1))
            if len(given) == 2:
                differs[p, g, a] = given[0] != given[1]
    return _Read(differs, named, listed, tokens, whole_PG)


def _plain_words(words: Mapping[str, str]) -> dict[str, str]:
    return {normal_name(name): normal_value(value, name) for name, value in words.items()}


def _yes_and_num(differs_PG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.nansum(differs_PG, axis=1), (~np.isnan(differs_PG)).sum(axis=1)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _verdict_bits(differs_PG: np.ndarray, verdicts_PG: np.ndarray) -> float:
    """Bits about the verdict of the same answer; the first answer of each pair, so that pairs count once."""
    yes_P, num_P = _yes_and_num(differs_PG[:, :1])
    return information(yes_P, num_P, verdicts_PG[:, 0] == 0).bits


def _told(differs_PGA: np.ndarray, differ_P: np.ndarray) -> float | None:
    """Accuracy on pairs that the regression did not see; what was not answered counts as half a difference."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if differs_PGA.shape[2] == 0 or min(differ_P.sum(), (~differ_P).sum()) < _FOLDS:
        return None
    known_PGA = np.where(np.isnan(differs_PGA), 0.5, differs_PGA)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores: Sequence[float] = cross_val_score(LogisticRegression(), known_PGA.mean(axis=1), differ_P, cv=folds)
    return float(np.mean(scores))
