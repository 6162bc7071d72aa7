"""What the frozen MLLM said of some pairs and where it looked, for the page of a study and for questions by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.configure import with_override
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.encoder.export import load_encoder
from saga_ray.leaderboard.pages import JudgedAnswer, JudgedPair
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.train.context import default_device
from saga_ray.train.looking import attention_of
from saga_ray.types import ImagePair, ImageTable, ScoreOptions, ScoreRequest, ScoreResult, VisualTokens

if TYPE_CHECKING:
    import pyarrow as pa

SHOWCASE_SEED = 1


def choose_pairs(table: ImageTable, per_query: pa.Table, num_pairs: int) -> list[tuple[int, int]]:
    """Rows of pairs worth showing, same and different classes in turn: queries spread over the table, each beside its nearest neighbour of its own class, or of another.

    The nearest of another class is the mistake that retrieval is closest to making, or has made.

    Args:
        per_query: As a run stores it, with each query's nearest images.
    """
    row_of = {image_id: row for row, image_id in enumerate(table.image_ids)}
    queries = per_query.to_pylist()
    stride = max(1, len(queries) // max(1, num_pairs))
    pairs = []
    for place in range(len(queries)):
        if len(pairs) == num_pairs:
            break
        query = queries[(place * stride + place * stride // len(queries)) % len(queries)]
        first = row_of[query["image_id"]]
        want_same = len(pairs) % 2 == 0
        near = [row_of[image_id] for image_id in query["neighbours"]]
        found = [row for row in near if (table.labels_N[row] == table.labels_N[first]) == want_same]
        if found:
            pairs.append((first, found[0]))
    return pairs


def judged_pairs(
    config: RunConfig, run: str | Path, table: ImageTable, per_query: pa.Table, num_pairs: int = 8
) -> list[JudgedPair]:
    """Show pairs of a split to the MLLM through a run's trained tower.

    Args:
        config: The run's; its loss must ask the MLLM.
        run: Folder of the run.
    """
    pairs = choose_pairs(table, per_query, num_pairs)
    if not pairs:
        return []
    rows = sorted({row for pair in pairs for row in pair})
    place = {row: number for number, row in enumerate(rows)}
    images_NHWC = np.ascontiguousarray(table.source.load(rows, config.data.image_size))
    encoder = load_encoder(run).encoder.to(default_device())
    same = [bool(table.labels_N[a] == table.labels_N[b]) for a, b in pairs]
    asked = tuple(ImagePair(place[a], place[b], s, n) for n, ((a, b), s) in enumerate(zip(pairs, same, strict=True)))
    scorer = LocalScorer(build_engine(config))
    tokens = _tokens(encoder, images_NHWC)
    said = scorer.score(ScoreRequest(SHOWCASE_SEED, 0, asked, tokens, ScoreOptions(gradient=False, attention=False)))
    looked = _attention(scorer, asked, tokens, said)
    names = table.class_names
    return [
        JudgedPair(
            images=(images_NHWC[place[a]], images_NHWC[place[b]]),
            class_names=(names[table.labels_N[a]], names[table.labels_N[b]]),
            same_class=same[number],
            answers=_answers(said, number),
            attention=looked[number],
            grid_hw=tokens.grid_hw,
        )
        for number, (a, b) in enumerate(pairs)
    ]


@dataclass(frozen=True)
class Asked:
    """Two pictures, and what the MLLM said of them."""

    images_NHWC: np.ndarray
    texts: tuple[str, ...]
    verdicts: tuple[int, ...]
    """1 same, 0 different, -1 none."""
    same_probabilities: tuple[float | None, ...]
    """Of "yes" after what each answer wrote before its verdict, at the sampling temperature and over all tokens that may stand
    there; None where a verdict is missing, or its tokens cannot be told from what stands around it."""
    attention: tuple[np.ndarray, np.ndarray] | None
    """Where the words of the first answer looked, (T,) per image; None if it described nothing."""
    grid_hw: tuple[int, int]


def ask_about(config: RunConfig, images_NHWC: np.ndarray) -> Asked:
    """The MLLM's answers about two pictures, (2, H, W, 3) uint8, seen through its own vision tower.

    Raises:
        ValueError: if the MLLM cannot be loaded.
    """
    encoder = build_encoder(config).to(default_device()).eval()
    tokens, pairs = _tokens(encoder, images_NHWC), (ImagePair(0, 1, True, 0),)
    scorer = LocalScorer(build_engine(config))
    quiet = ScoreOptions(gradient=False, attention=False)
    said = scorer.score(ScoreRequest(config.seed, 0, pairs, tokens, quiet))
    told = ScoreRequest(config.seed, 0, pairs, tokens, quiet, answers=said.texts_PG)
    return Asked(
        images_NHWC,
        said.texts_PG[0],
        tuple(said.verdicts_PG[0].tolist()),
        _same_probabilities(scorer.engine, config, told, said.verdicts_PG[0].tolist()),
        _attention(scorer, pairs, tokens, said)[0],
        tokens.grid_hw,
    )


def _same_probabilities(
    engine: ScoringEngine, config: RunConfig, told: ScoreRequest, verdicts: Sequence[int]
) -> tuple[float | None, ...]:
    """Of "yes" in place of each given answer's verdict: an expected reward is the probability of the right one, and the
    request calls its one pair the same class.
    """
    if not engine.knows_right_verdicts:
        return (None,) * len(verdicts)
    expecting = with_override(with_override(config, "grpo.top_p", 1.0), "grpo.reward", "expected")
    judged = LocalScorer(ScoringEngine(engine.mllm, engine.prompt, expecting)).score(told)
    known = zip(judged.rewards_PG[0].tolist(), verdicts, strict=True)
    return tuple(p if verdict >= 0 and p > 0 else None for p, verdict in known)


def _tokens(encoder: Encoder, images_NHWC: np.ndarray) -> VisualTokens:
    with torch.no_grad():
        return encoder.encode_tokens(torch.from_numpy(images_NHWC).to(encoder.device))


def _answers(said: ScoreResult, pair: int) -> tuple[JudgedAnswer, ...]:
    told: list[Any] = [said.texts_PG[pair], said.verdicts_PG[pair].tolist(), said.rewards_PG[pair].tolist()]
    return tuple(JudgedAnswer(text, verdict, reward) for text, verdict, reward in zip(*told, strict=True))


def _attention(
    scorer: LocalScorer, pairs: tuple[ImagePair, ...], tokens: VisualTokens, said: ScoreResult
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Where each pair's first answer looked, (T,) per image; None if it described nothing."""
    found = attention_of(scorer, SHOWCASE_SEED, pairs, tokens, [texts[0] for texts in said.texts_PG])
    return [_means(sum_2T, count_2) for sum_2T, count_2 in zip(*found, strict=True)]


def _means(sum_2T: Tensor, count_2: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    if not bool((count_2 > 0).all()):
        return None
    first_T, second_T = (sum_2T / count_2[:, None]).double().numpy()
    return first_T, second_T
