"""The share of true attributes that the MLLM names rightly through an encoder, before and after training.

Truth is used to measure, never to train, and an attribute counts only where data set and vocabulary share words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from saga_ray.train.naming import said_of_images
from saga_ray.vocab.words import normal_name, normal_value

if TYPE_CHECKING:
    from saga_ray.mllm.prompt import Prompt
    from saga_ray.train.naming import Questions
    from saga_ray.types import Dataset, ScoreResult

NUM_RESAMPLES = 2000
ALL = "all"


@dataclass(frozen=True)
class Matched:
    """Attributes that data set and vocabulary share, and why others are left out."""

    columns: Mapping[str, int]
    """Vocabulary's name to the data set's column."""
    left_out: Mapping[str, str]
    """Name, of either side, to a sentence."""


@dataclass(frozen=True)
class Named:
    """One attribute's share in [0, 1] of descriptions that name it rightly, before and after training."""

    name: str
    before: float
    after: float
    low: float
    high: float
    """95 % interval of `difference`, over classes."""
    num_classes: int
    """With known truth."""

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True)
class Truth:
    """All that was measured."""

    rows: tuple[Named, ...]
    """The mean over attributes first, under the name `all`."""
    left_out: Mapping[str, str]
    well_formed: tuple[float, float]
    """Share of answers in form, before and after; the others name nothing."""

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        rows = [asdict(row) | {"difference": row.difference} for row in self.rows]
        return {"attributes": rows, "left_out": dict(self.left_out), "well_formed": list(self.well_formed)}


def match(dataset: Dataset, prompt: Prompt) -> Matched:
    """Find the data set's columns for the vocabulary's attributes, by name without regard to spelling.

    Raises:
        ValueError: if the data set knows no attributes, or none that the vocabulary asks for.
    """
    if not dataset.attribute_names:
        raise ValueError(
            f"data set '{dataset.name}': has no attribute labels, so nothing can be said about truth; use demo, or cub with its attributes"
        )
    of_truth = {normal_name(name): column for column, name in enumerate(dataset.attribute_names)}
    asked = {normal_name(name): name for name in prompt.attributes}
    columns, left_out = {}, {}
    for normal, name in asked.items():
        if normal not in of_truth:
            left_out[name] = "the data set has no labels for it"
            continue
        column = of_truth[normal]
        allowed = {normal_value(value, name) for value in prompt.attributes[name] or ()}
        if allowed and not allowed & _true_words(dataset, column):
            left_out[name] = "vocabulary and labels share no value"
            continue
        columns[name] = column
    left_out |= {
        dataset.attribute_names[c]: "the vocabulary does not ask for it" for n, c in of_truth.items() if n not in asked
    }
    if not columns:
        raise ValueError(
            f"data set '{dataset.name}': its labels ({', '.join(dataset.attribute_names[:4])}, ...) and the vocabulary "
            f"({', '.join(list(prompt.attributes)[:4])}, ...) share no attribute; choose another with --set prompt.vocabulary=NAME"
        )
    return Matched(columns, left_out)


def _true_words(dataset: Dataset, column: int) -> set[str]:
    name = dataset.attribute_names[column]
    return {normal_value(value, name) for value in dataset.attribute_values[column]}


def rightly_named(
    result: ScoreResult, questions: Questions, prompt: Prompt, columns: Mapping[str, int], labels_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptions of each class that name each attribute rightly, and descriptions whose truth is known.

    A malformed answer names nothing. A true value that the vocabulary does not offer counts as not known.

    Args:
        labels_N: class of each of the questions' pictures.

    Returns:
        right, known: (classes, attributes), counts.
    """
    assert questions.truth_NA is not None
    shape = (int(labels_N.max()) + 1, len(columns))
    right_CA, known_CA = np.zeros(shape), np.zeros(shape)
    wanted_NA = np.stack(
        [_sayable(questions.truth_NA[:, c], questions.attribute_names[c], name, prompt) for name, c in columns.items()],
        axis=1,
    )
    names = [normal_name(name) for name in columns]
    for pair, texts, well_formed in zip(questions.pairs, result.texts_PG, result.well_formed_PG.tolist(), strict=True):
        for text, is_whole in zip(texts, well_formed, strict=True):
            said = said_of_images(text, prompt.verdict_key) if is_whole else ({}, {})
            for words, image in zip(said, (pair.first, pair.second), strict=True):
                by_name = {normal_name(name): normal_value(value, name) for name, value in words.items()}
                known_CA[labels_N[image]] += wanted_NA[image] != ""
                right_CA[labels_N[image]] += [
                    wanted != "" and by_name.get(name) == wanted
                    for name, wanted in zip(names, wanted_NA[image], strict=True)
                ]
    return right_CA, known_CA


def _sayable(truth_N: np.ndarray, true_name: str, name: str, prompt: Prompt) -> np.ndarray:
    """True words as they are compared; empty where they are not known, or not among the values that may be said."""
    allowed = {normal_value(value, name) for value in prompt.attributes[name] or ()}
    words = [normal_value(word, true_name) if word else "" for word in truth_N.tolist()]
    return np.array([word if not allowed or word in allowed else "" for word in words], dtype=object)


def compare(
    names: Sequence[str], before_CA: np.ndarray, after_CA: np.ndarray, known_CA: np.ndarray
) -> tuple[Named, ...]:
    """Shares before and after, with the interval of their difference by a bootstrap over classes.

    Pictures of one class stand or fall together. A share is the sum over classes of right descriptions over that of known
    ones; `all` is the mean of the attributes' shares.

    Args:
        before_CA, after_CA, known_CA: (classes, attributes) counts, see `rightly_named`.

    Returns:
        `all`, then one row per attribute whose truth is known of any picture.
    """
    seen = [a for a in range(len(names)) if known_CA[:, a].any()]
    sides = [(each[:, seen], known_CA[:, seen]) for each in (before_CA, after_CA)]
    before_A, after_A = (_shares(right_CA, known) for right_CA, known in sides)
    low, high = _interval(*sides)
    num_classes = [int((known_CA[:, a] > 0).sum()) for a in seen]
    labels = [ALL, *(names[a] for a in seen)]
    before, after = ([float(each.mean()), *each.tolist()] for each in (before_A, after_A))
    counted = [int((known_CA > 0).any(axis=1).sum()), *num_classes]
    rows = zip(labels, before, after, low, high, counted, strict=True)
    return tuple(Named(*row) for row in rows)


def _shares(right_CA: np.ndarray, known_CA: np.ndarray) -> np.ndarray:
    return right_CA.sum(axis=-2) / known_CA.sum(axis=-2).clip(1)


def _interval(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]
) -> tuple[list[float], list[float]]:
    """Ends for `all` and each attribute; a single class says nothing about others: from -1 to 1."""
    num_classes, num_attributes = before[0].shape
    if num_classes < 2:
        return [-1.0] * (num_attributes + 1), [1.0] * (num_attributes + 1)

    def differences(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = np.moveaxis(chosen, axis, -1)
        shares = [_shares(right_CA[chosen], known_CA[chosen]) for right_CA, known_CA in (before, after)]
        by_attribute = shares[1] - shares[0]
        every = np.concatenate([by_attribute.mean(axis=-1, keepdims=True), by_attribute], axis=-1)
        return np.moveaxis(every, -1, 0)

    drawn = stats.bootstrap(
        (np.arange(num_classes),),
        differences,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.asarray(drawn.low).tolist(), np.asarray(drawn.high).tolist()
