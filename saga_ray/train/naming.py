"""What the frozen MLLM says of pictures through a given encoder: attributes named rightly, and verdicts.

Every encoder is asked the same questions about the same pairs with the same random numbers, so that two of them, or two
steps of one run, differ in what they show and in nothing else. Truth is used here to measure, never to train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.encoder.encoder import Encoded, Encoder
from saga_ray.mllm.answers import parse_answer, plain
from saga_ray.mllm.prompt import Prompt
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.train.looking import attention_of
from saga_ray.types import Dataset, ImagePair, ImageTable, ScoreOptions, Scorer, ScoreRequest, ScoreResult, VisualTokens

QUESTION_SEED = 4
"""Of the sample of pairs and of the answers, whatever the run's seed, so that all runs are asked alike."""
GREEDY_TEMPERATURE = 1e-4
NUM_VALIDATION_PAIRS = 32
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class Questions:
    """A fixed sample of pairs of one split, with the truth about their pictures where a data set knows it."""

    images_NHWC: np.ndarray
    """uint8, each picture once."""
    rows_N: np.ndarray
    """Rows of the split's table."""
    pairs: tuple[ImagePair, ...]
    """Same and different classes in turn; positions in `images_NHWC`."""
    attribute_names: tuple[str, ...] = ()
    truth_NA: np.ndarray | None = None
    """Words, in the order of `attribute_names`; empty where the truth is not known."""


def sample_questions(
    dataset: Dataset,
    split: str,
    image_size: int,
    num_pairs: int = 96,
    *,
    centroids_CE: np.ndarray | None = None,
    seed: int = QUESTION_SEED,
) -> Questions:
    """Pairs of a split, half of one class and half of a class and its nearest neighbour.

    The nearest class is the one that differs in the fewest true attributes; without truth the one whose centroid in
    `centroids_CE` has the largest cosine; without either a random one.
    """
    table = dataset.split(split)
    picked = sample_pairs(table.labels_N, _class_distances(table, centroids_CE), num_pairs, seed)
    rows_N = np.unique([row for rows in picked for row in rows])
    place = {int(row): number for number, row in enumerate(rows_N)}
    same = [bool(table.labels_N[a] == table.labels_N[b]) for a, b in picked]
    pairs = tuple(ImagePair(place[a], place[b], s, n) for n, ((a, b), s) in enumerate(zip(picked, same, strict=True)))
    images_NHWC = np.array(table.source.load(rows_N.tolist(), image_size))
    if table.truth_NA is None:
        return Questions(images_NHWC, rows_N, pairs)
    # Unknown is -1, which takes the word behind the last one.
    columns = [
        np.array([*values, ""])[table.truth_NA[rows_N, column]]
        for column, values in enumerate(dataset.attribute_values)
    ]
    return Questions(images_NHWC, rows_N, pairs, dataset.attribute_names, np.stack(columns, axis=1))


def sample_pairs(
    labels_N: np.ndarray, distances_CC: np.ndarray, num_pairs: int, seed: int = QUESTION_SEED
) -> list[tuple[int, int]]:
    """Rows of pairs, same and different classes in turn, spread evenly over the classes.

    Args:
        labels_N: class numbers; a class of one picture gives no pair of its own.
        distances_CC: between classes; of equally near neighbours one is drawn.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels_N == label) for label in range(len(distances_CC))]
    with_two = [label for label, rows in enumerate(members) if len(rows) > 1]
    apart_CC = np.where(np.eye(len(members), dtype=bool), np.inf, distances_CC)
    if not with_two or len(members) < 2:
        raise ValueError("data: asking about pairs needs at least two classes, one of them with two images or more")
    same, different = _rounds(with_two, rng), _rounds(range(len(members)), rng)
    pairs = []
    for number in range(num_pairs):
        if number % 2 == 0:
            first, second = rng.choice(members[next(same)], 2, replace=False)
        else:
            label = next(different)
            near = rng.choice(np.flatnonzero(apart_CC[label] == apart_CC[label].min()))
            first, second = rng.choice(members[label]), rng.choice(members[near])
        pairs.append((int(first), int(second)))
    return pairs


def _rounds(labels: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """The labels in random order, again and again."""
    while True:
        yield from rng.permutation(labels).tolist()


def _class_distances(table: ImageTable, centroids_CE: np.ndarray | None) -> np.ndarray:
    num_classes = len(table.class_names)
    if table.truth_NA is not None:
        truth_CA = np.stack([_commonest(table.truth_NA[table.labels_N == label]) for label in range(num_classes)])
        known_CCA = (truth_CA[:, None] >= 0) & (truth_CA[None] >= 0)
        differ_CC = ((truth_CA[:, None] != truth_CA[None]) & known_CCA).sum(axis=2)
        num_known_CC = known_CCA.sum(axis=2)
        # Where nothing is known of both, they may be anything: farther than any other.
        return np.where(num_known_CC > 0, differ_CC / num_known_CC.clip(1), 2.0)
    if centroids_CE is not None:
        unit_CE = centroids_CE / np.linalg.norm(centroids_CE, axis=1, keepdims=True).clip(1e-12)
        return -(unit_CE @ unit_CE.T)
    return np.zeros((num_classes, num_classes))


def _commonest(truth_NA: np.ndarray) -> np.ndarray:
    """Each attribute's commonest known value, -1 if none is known; of equally common ones the first."""
    return np.array([np.bincount(column + 1)[1:].argmax() if column.max() >= 0 else -1 for column in truth_NA.T])


@dataclass(frozen=True)
class Heard:
    """What an encoder showed and what the MLLM said of it."""

    encoded: Encoded
    """On the CPU."""
    result: ScoreResult


def ask(encoder: Encoder, scorer: Scorer, questions: Questions) -> Heard:
    """Show the questions' pictures through an encoder; neither its mode nor its gradients nor any random state changes."""
    with _undisturbed(encoder):
        starts = range(0, len(questions.images_NHWC), _ENCODED_AT_ONCE)
        parts = [
            encoder(torch.from_numpy(questions.images_NHWC[start : start + _ENCODED_AT_ONCE]).to(encoder.device))
            for start in starts
        ]
        tokens = VisualTokens(torch.cat([part.tokens.tokens_NLTD for part in parts]), parts[0].tokens.grid_hw)
        options = ScoreOptions(gradient=False, attention=False)
        result = scorer.score(ScoreRequest(QUESTION_SEED, 0, questions.pairs, tokens, options))
    embedding_NE, weights_NT = (
        torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("embedding_NE", "weights_NT")
    )
    return Heard(Encoded(VisualTokens(tokens.tokens_NLTD.cpu(), tokens.grid_hw), embedding_NE, weights_NT), result)


@contextmanager
def _undisturbed(encoder: Encoder) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def asking_engine(engine: ScoringEngine, num_answers: int = 2, *, greedy: bool = False) -> ScoringEngine:
    """The same frozen MLLM and prompt with another number of answers per pair, or the one likeliest answer."""
    changes: dict[str, Any] = {"group_size": num_answers, "reward": "sampled"}
    if greedy:
        changes |= {"group_size": 1, "temperature": GREEDY_TEMPERATURE, "top_p": 1.0}
    config, grpo = engine.config, engine.config.grpo.model_copy(update=changes)
    # As many answers at once as in training: with fewer per pair, more pairs.
    at_once = max(1, config.scorer.pairs_per_chunk * config.grpo.group_size // grpo.group_size)
    scorer = config.scorer.model_copy(update={"pairs_per_chunk": at_once})
    config = config.model_copy(update={"grpo": grpo, "scorer": scorer})
    return ScoringEngine(engine.mllm, engine.prompt, config, path=engine.path)


def naming(encoder: Encoder, scorer: Scorer, questions: Questions, prompt: Prompt) -> dict[str, Any]:
    """What the frozen MLLM says of the questions' pictures through an encoder.

    Args:
        scorer: A `ScoringEngine` (see `asking_engine`) or any other scorer.
        prompt: What the scorer asks; says which attributes are described.

    Returns:
        As `heard_shares`.
    """
    return heard_shares(ask(encoder, scorer, questions).result, questions, prompt)


def heard_shares(result: ScoreResult, questions: Questions, prompt: Prompt) -> dict[str, Any]:
    """Shares in [0, 1], of all answers: `attributes` ({name: named rightly}) and their mean `named`, `verdict_same` and
    `verdict_different` (right verdicts) and their mean `verdict`, `well_formed`, and `mixed`: pairs whose answers disagree.

    A malformed answer names nothing and has no verdict, so it counts as wrong. `attributes` is empty and `named` None where
    no truth is known, or the prompt does not ask for it.
    """
    same_P = np.array([pair.same_class for pair in questions.pairs])
    right_PG = result.verdicts_PG.cpu().numpy() == same_P[:, None]
    right_P = right_PG.mean(axis=1)
    attributes = _named_rightly(result, questions, prompt)
    verdict_same, verdict_different = (float(right_P[which].mean()) for which in (same_P, ~same_P))
    shares = {
        "named": sum(attributes.values()) / len(attributes) if attributes else None,
        "verdict": (verdict_same + verdict_different) / 2,
        "verdict_same": verdict_same,
        "verdict_different": verdict_different,
        "well_formed": float(result.well_formed_PG.double().mean()),
        "mixed": float((right_PG != right_PG[:, :1]).any(axis=1).mean()),
    }
    return {"attributes": attributes, **shares}


def _named_rightly(result: ScoreResult, questions: Questions, prompt: Prompt) -> dict[str, float]:
    asked = {plain(name) for name in prompt.attributes} if prompt.variant != "generic" else set()
    columns = {name: column for column, name in enumerate(questions.attribute_names) if plain(name) in asked}
    if questions.truth_NA is None or not columns:
        return {}
    right, num_known = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
    for pair, texts, well_formed in zip(questions.pairs, result.texts_PG, result.well_formed_PG.tolist(), strict=True):
        truths = questions.truth_NA[[pair.first, pair.second]]
        for text, is_whole in zip(texts, well_formed, strict=True):
            # A cut answer may still parse; the scorer gives it no verdict, and here it names nothing.
            said = said_of_images(text, prompt.verdict_key) if is_whole else ({}, {})
            for words, truth_A in zip(said, truths, strict=True):
                for name, column in columns.items():
                    if truth_A[column]:
                        num_known[name] += 1
                        right[name] += words.get(plain(name)) == plain(truth_A[column])
    return {name: right[name] / count for name, count in num_known.items() if count}


def said_of_images(text: str, verdict_key: str) -> tuple[dict[str, str], dict[str, str]]:
    """The words of a well-formed answer about each image, {attribute: value}, in lower case, "_" read as a space.

    Of an attribute with several values the last counts.
    """
    said: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for span in parse_answer(text, verdict_key).spans:
        said[span.image][plain(span.attribute)] = plain(text[span.start : span.stop])
    return said


def validation_questions(config: RunConfig, dataset: Dataset, num_pairs: int = NUM_VALIDATION_PAIRS) -> Questions:
    """The small fixed set of validation pairs that a training loop asks about every so many steps."""
    return sample_questions(dataset, "validation", config.data.image_size, num_pairs)


def validation_metrics(encoder: Encoder, scorer: Scorer, questions: Questions, prompt: Prompt) -> dict[str, float]:
    """How the MLLM judges unseen classes through the encoder as it is now; for the log of a training step.

    When the reward on training classes rises and these do not, the encoder has found a code that satisfies the reader
    without showing what it is asked for. Calling this changes nothing: no mode, gradient or random state.

    Args:
        scorer: The run's own; it gives as many answers per pair as in training.

    Returns:
        `validation/verdict` (mean of the two below), `validation/verdict_same`, `validation/verdict_different`,
        `validation/well_formed` and, where truth is known and asked for, `validation/naming`; shares in [0, 1].
    """
    shares = naming(encoder, scorer, questions, prompt)
    names = ("verdict", "verdict_same", "verdict_different", "well_formed")
    metrics = {f"validation/{name}": shares[name] for name in names}
    if shares["named"] is not None:
        metrics["validation/naming"] = shares["named"]
    return metrics


def first_attention(scorer: Scorer, questions: Questions, heard: Heard) -> tuple[np.ndarray, np.ndarray]:
    """Where the MLLM looked while it described the pictures of each pair, by the pair's first well-formed answer.

    Returns:
        maps (M, T), each summing to 1, and the picture (M,) that each belongs to, a position in the questions' pictures.
    """
    asked, answers = [], []
    for pair, texts, well_formed in zip(
        questions.pairs, heard.result.texts_PG, heard.result.well_formed_PG.tolist(), strict=True
    ):
        if any(well_formed):
            asked.append(pair)
            answers.append(texts[well_formed.index(True)])
    tokens = heard.encoded.tokens
    if not asked:
        return np.zeros((0, tokens.tokens_NLTD.shape[2])), np.zeros(0, np.int64)
    sum_P2T, count_P2 = attention_of(scorer, QUESTION_SEED, asked, tokens, answers)
    images_P2 = torch.tensor([(pair.first, pair.second) for pair in asked])
    return _mean_maps(sum_P2T.cpu(), count_P2.cpu(), images_P2)


def _mean_maps(sum_P2T: Tensor, count_P2: Tensor, images_P2: Tensor) -> tuple[np.ndarray, np.ndarray]:
    described_P2 = count_P2 > 0
    maps_MT = sum_P2T[described_P2].double() / count_P2[described_P2][:, None]
    return (maps_MT / maps_MT.sum(dim=1, keepdim=True)).numpy(), images_P2[described_P2].numpy()
