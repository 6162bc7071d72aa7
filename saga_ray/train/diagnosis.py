"""Why training worked, or did not: an encoder before and after, measured on classes that it never saw.

The MLLM's words through the encoder (`saga_ray.train.naming`), linear probes of the attributes on the embeddings, how far
the tokens drifted, and where MLLM and pooler look.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.data.demo import birds
from saga_ray.data.demo.world import DemoSource, class_vectors, nuisance
from saga_ray.data.splits import SPLITS
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import build_engine
from saga_ray.train.context import LocalContext
from saga_ray.train.embed import class_centroids, embed_table
from saga_ray.train.naming import Heard, Questions, ask, asking_engine, first_attention, heard_shares, sample_questions
from saga_ray.types import Dataset, ImageTable, VisualTokens

MAX_MAP_CELLS = 64
"""Larger grids are left out of the record, which stays small."""
_BIRD = ("crown color", "breast color", "belly color", "wing color", "tail shape", "bill shape", "leg color")
"""Attributes whose places do not overlap and together are all that shows any attribute; the others lie on top of them."""
_DIGITS = 4


def diagnose(
    config: RunConfig,
    dataset: Dataset,
    encoder: Encoder,
    *,
    engine: ScoringEngine | None = None,
    num_pairs: int = 96,
    num_answers: int = 2,
    split: str = "validation",
) -> dict[str, Any]:
    """Compare a run's trained encoder with the one that it started from.

    Args:
        encoder: The trained one; left as it is.
        engine: A loaded MLLM with the structured prompt; by default it is loaded, and rows trained with the generic prompt
            are asked the structured one too.
        split: Of unseen classes.

    Returns:
        What JSON holds, under 4 KB: `before` and `after` as `heard_shares` (plus `looks`, see `where`), `probes` (`before`,
        `after`, `chance`: {attribute: share}), `drift`, `split`, `pairs`, `answers`, `seconds`.
    """
    began = time.perf_counter()
    if engine is None:
        prompt = config.prompt.model_copy(update={"variant": "structured"})
        engine = build_engine(config.model_copy(update={"prompt": prompt}))
    engine = asking_engine(engine, num_answers)
    table, size = dataset.split(split), config.data.image_size
    encoders = {"before": build_encoder(config).to(encoder.device), "after": encoder}
    centroids_CE = None
    if table.truth_NA is None:  # neighbours are then those of the initial encoder
        context = LocalContext(encoder.device)
        embeddings_NE = embed_table(encoders["before"], table, size, config.evaluation.batch_size, context)
        centroids_CE = class_centroids(embeddings_NE, table.labels_N)
    questions = sample_questions(dataset, split, size, num_pairs, centroids_CE=centroids_CE)
    heard = {name: ask(each, engine, questions) for name, each in encoders.items()}
    record: dict[str, Any] = {"split": split, "pairs": num_pairs, "answers": num_answers}
    for name, each in heard.items():
        looks = _looks(engine, table, questions, each)
        record[name] = heard_shares(each.result, questions, engine.prompt) | {"looks": looks}
    record["probes"] = _both_probes(heard, table, questions)
    record["drift"] = drift(*(heard[name].encoded.tokens.tokens_NLTD for name in ("before", "after")))
    record["seconds"] = time.perf_counter() - began
    return _rounded(record)


def _both_probes(heard: dict[str, Heard], table: ImageTable, questions: Questions) -> dict[str, dict[str, float]]:
    """Probes on the questions' pictures, which are spread evenly over the classes."""
    if table.truth_NA is None:
        return {}
    truth_NA, labels_N = table.truth_NA[questions.rows_N], table.labels_N[questions.rows_N]
    found = {when: probes(each.encoded.embedding_NE.numpy(), truth_NA, labels_N) for when, each in heard.items()}
    names = questions.attribute_names
    out = {when: {names[a]: accuracy for a, (accuracy, _) in each.items()} for when, each in found.items()}
    return out | {"chance": {names[a]: chance for a, (_, chance) in found["before"].items()}}


def probes(
    embeddings_NE: np.ndarray, truth_NA: np.ndarray, labels_N: np.ndarray, *, num_folds: int = 3, seed: int = 0
) -> dict[int, tuple[float, float]]:
    """How well each attribute can be read from embeddings by a linear map that never saw the class.

    In each fold the classes are halved at random and a logistic regression trained on either half is tested on the other.
    A value that the training half does not show cannot be answered; its pictures are left out.

    Returns:
        {attribute: (accuracy, chance)}: shares in [0, 1], means over folds and halves; chance is what always answering the
        training half's commonest value gives. Attributes that no half shows with two values are left out.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for train_N in _class_halves(labels_N, num_folds, seed):
        train_NE, test_NE = _standardised(embeddings_NE[train_N], embeddings_NE[~train_N])
        for attribute in range(truth_NA.shape[1]):
            truth_N = truth_NA[:, attribute]
            scored = _probe(train_NE, truth_N[train_N], test_NE, truth_N[~train_N])
            if scored is not None:
                found.setdefault(attribute, []).append(scored)
    return {
        attribute: (float(np.mean([s[0] for s in scores])), float(np.mean([s[1] for s in scores])))
        for attribute, scores in sorted(found.items())
    }


def _class_halves(labels_N: np.ndarray, num_folds: int, seed: int) -> Iterator[np.ndarray]:
    """bool (N,): pictures to train on; each fold's two halves in turn."""
    rng = np.random.default_rng(seed)
    classes = np.unique(labels_N)
    for _ in range(num_folds):
        half_N = np.isin(labels_N, rng.permutation(classes)[: len(classes) // 2])
        yield from (half_N, ~half_N)


def _standardised(train_NE: np.ndarray, test_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves by the first one's mean and spread: the probe's penalty then means the same for every encoder."""
    mean_E, std_E = train_NE.mean(axis=0), train_NE.std(axis=0)
    scale_E = 1 / np.where(std_E > 1e-8, std_E, 1.0)
    return (train_NE - mean_E) * scale_E, (test_NE - mean_E) * scale_E


def _probe(
    train_NE: np.ndarray, truth_N: np.ndarray, test_NE: np.ndarray, test_N: np.ndarray
) -> tuple[float, float] | None:
    """Accuracy and chance on pictures whose truth is known (not -1), or None if there is nothing to tell apart."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train_NE, truth_N = train_NE[truth_N >= 0], truth_N[truth_N >= 0]
    values, counts = np.unique(truth_N, return_counts=True)
    known_N = np.isin(test_N, values)
    if len(values) < 2 or not known_N.any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Loose on purpose: three times the iterations change the mean over attributes by half a point.
        model = LogisticRegression(C=0.1, max_iter=50, tol=1e-2).fit(train_NE, truth_N)
    right = model.predict(test_NE[known_N]) == test_N[known_N]
    return float(right.mean()), float((test_N[known_N] == values[counts.argmax()]).mean())


def drift(before_NLTD: Tensor, after_NLTD: Tensor) -> dict[str, list[float]]:
    """How far the tokens of the same pictures moved, per level, means over pictures.

    Returns:
        `relative` (L): |after - before| / |before|, lengths over all tokens of a picture; `cosine` (L): between the two.
    """
    before_NLX, after_NLX = before_NLTD.double().flatten(2), after_NLTD.double().flatten(2)
    moved_NL = (after_NLX - before_NLX).norm(dim=2) / before_NLX.norm(dim=2)
    cosine_NL = torch.cosine_similarity(before_NLX, after_NLX, dim=2)
    return {"relative": moved_NL.mean(dim=0).tolist(), "cosine": cosine_NL.mean(dim=0).tolist()}


def _looks(engine: ScoringEngine, table: ImageTable, questions: Questions, heard: Heard) -> dict[str, Any]:
    maps_MT, images_M = first_attention(engine, questions, heard)
    tokens: VisualTokens = heard.encoded.tokens
    bird_NT = bird_cells(table, questions.rows_N, tokens.grid_hw)
    weights_MT = heard.encoded.weights_NT.double().numpy()[images_M]
    return where(maps_MT, weights_MT, None if bird_NT is None else bird_NT[images_M]) | {
        "grid_hw": list(tokens.grid_hw)
    }


def where(maps_MT: np.ndarray, weights_MT: np.ndarray, bird_MT: np.ndarray | None = None) -> dict[str, Any]:
    """Where MLLM and pooler look in M pictures.

    Args:
        maps_MT: The MLLM's attention over the tokens, each row summing to 1.
        weights_MT: The pooler's weights, likewise.
        bird_MT: Share of every cell in which some attribute is to be seen, where that is known.

    Returns:
        `pictures` (M); `correlation` of the two over a picture's tokens, mean over pictures, None if either is flat
        everywhere; `mllm_map` and `pooler_map`, the means (T,), unless T is above MAX_MAP_CELLS. With `bird_MT` also
        `mllm_on_bird` and `pooler_on_bird`, the shares that fall on the bird, `bird_area`, what an even look would give,
        and `bird_map`.
    """
    looks: dict[str, Any] = {"pictures": len(maps_MT)}
    if not len(maps_MT):
        return looks
    looks["correlation"] = _mean_correlation(maps_MT, weights_MT)
    averages = {"mllm": maps_MT, "pooler": weights_MT}
    if bird_MT is not None:
        looks |= {f"{name}_on_bird": float((each * bird_MT).sum(axis=1).mean()) for name, each in averages.items()}
        looks["bird_area"] = float(bird_MT.mean())
        averages["bird"] = bird_MT
    if maps_MT.shape[1] <= MAX_MAP_CELLS:
        looks |= {f"{name}_map": each.mean(axis=0).round(3).tolist() for name, each in averages.items()}
    return looks


def _mean_correlation(first_MT: np.ndarray, second_MT: np.ndarray) -> float | None:
    first_MT, second_MT = (each - each.mean(axis=1, keepdims=True) for each in (first_MT, second_MT))
    lengths_M = np.linalg.norm(first_MT, axis=1) * np.linalg.norm(second_MT, axis=1)
    # Equal weights leave a rounding residue, which correlates with nothing.
    varies_M = lengths_M > 1e-12
    if not varies_M.any():
        return None
    return float(((first_MT * second_MT).sum(axis=1)[varies_M] / lengths_M[varies_M]).mean())


def bird_cells(table: ImageTable, rows_N: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray | None:
    """Share of every token's cell in which some attribute of the drawn bird is seen, (N, T) in [0, 1].

    None for pictures that were not drawn here.
    """
    source = getattr(table.source, "source", table.source)  # what keeps pictures in memory stands before the drawing
    if not isinstance(source, DemoSource) or grid_hw[0] != grid_hw[1]:
        return None
    world, cells, number = source.world, grid_hw[0], SPLITS.index(source.split)
    vectors_CA = class_vectors(world.world_seed, world.neighbour_distance, world.num_classes, world.tied)[number]
    parameters, _ = nuisance(world, source.split, rows_N)
    attributes_NA, turn = vectors_CA[rows_N // world.num_images[number]], birds.turn_of(world.gap, world.shift)
    shown_NAHW = birds.parts(attributes_NA, parameters, cells, points=8 * cells, turn=turn)
    bird_NHW = shown_NAHW[:, [birds.NAMES.index(name) for name in _BIRD]].sum(axis=1)
    return bird_NHW.reshape(len(rows_N), -1).astype(np.float64)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
