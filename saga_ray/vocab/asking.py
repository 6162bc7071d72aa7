"""Which pairs a vocabulary is judged on, and what the MLLM answers about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saga_ray.config import RunConfig
from saga_ray.configure import from_yaml, with_override
from saga_ray.data import load_dataset
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.encoder.export import load_encoder
from saga_ray.scorer.local import build_engine
from saga_ray.scorer.parts import join_results
from saga_ray.scorer.prompt import run_prompt
from saga_ray.storage import Storage
from saga_ray.train.context import LocalContext, default_device
from saga_ray.train.embed import class_centroids, embed_table
from saga_ray.train.naming import Questions, ask, asking_engine, sample_questions
from saga_ray.train.progress import Progress, Silent
from saga_ray.train.run_folder import CONFIG, RESULT
from saga_ray.types import Dataset, Scorer, ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from saga_ray.scorer.engine import ScoringEngine


_PAIRS_AT_ONCE = 16


@dataclass(frozen=True)
class Sample:
    """How many pairs of which classes are asked about, and how often."""

    split: str = "validation"
    num_pairs: int = 400
    num_answers: int = 2


@dataclass(frozen=True)
class Panel:
    """Everything that is needed to ask: the MLLM with its prompt, pairs, and the encoder that the run began with."""

    engine: ScoringEngine
    dataset: Dataset
    questions: Questions
    initial: Encoder


def finished_run(run: str, data_root: str | None = None) -> RunConfig:
    """The configuration of a finished run.

    Raises:
        ValueError: if the folder holds none.
    """
    folder = Storage.open(run)
    if not folder.exists(CONFIG) or not folder.exists(RESULT):
        raise ValueError(
            f"{run}: is not the folder of a finished run ({CONFIG} or {RESULT} is missing); name one, such as runs/NAME"
        )
    config = from_yaml(folder.read(CONFIG).decode(), f"{run}/{CONFIG}")
    return config if data_root is None else with_override(config, "data.root", data_root)


def same_data(run: str, dataset: Dataset) -> bool:
    """True if the data set is the one that the run was measured on."""
    try:
        return json.loads(Storage.open(run).read(RESULT)).get("fingerprint") == dataset.fingerprint
    except ValueError:
        return False


def trained_encoder(run: str) -> Encoder:
    """The encoder that a run left."""
    return load_encoder(run).encoder.to(default_device())


def panel(config: RunConfig, sample: Sample, progress: Progress | None = None) -> Panel:
    """Load what is needed and draw the pairs: half of one class, half of a class and its nearest neighbour.

    Attributes are asked for whatever the run's prompt was.

    Raises:
        ValueError: sentences about configuration, data or MLLM folder.
    """
    progress = progress or Silent()
    config = with_override(config, "prompt.variant", "structured")
    run_prompt(config)  # its mistakes before the data is read
    progress.stage(f"loading the data set {config.dataset}")
    dataset = load_dataset(config)
    table, size = dataset.split(sample.split), config.data.image_size
    if not len(table):
        raise ValueError(
            f"--split {sample.split}: '{dataset.name}' has no {sample.split} classes here; name another split"
        )
    progress.stage("loading the frozen MLLM")
    engine = asking_engine(build_engine(config), sample.num_answers)
    initial = build_encoder(config).to(default_device())
    centroids_CE = None
    if table.truth_NA is None:  # neighbours are then those of the initial encoder
        progress.stage(f"looking for neighbours among {len(table.class_names)} classes")
        context = LocalContext(default_device())
        embeddings_NE = embed_table(initial, table, size, config.evaluation.batch_size, context)
        centroids_CE = class_centroids(embeddings_NE, table.labels_N)
    questions = sample_questions(dataset, sample.split, size, sample.num_pairs, centroids_CE=centroids_CE)
    return Panel(engine, dataset, questions, initial)


def answers(encoder: Encoder, asked: Panel, progress: Progress | None = None) -> ScoreResult:
    """What the MLLM answers about the panel's pairs through an encoder, the same whatever was asked before."""
    return ask(encoder, _InParts(asked.engine, progress or Silent()), asked.questions).result


class _InParts:
    """Asks about some pairs at a time, so that it can be seen how far it is; that changes no answer."""

    def __init__(self, scorer: Scorer, progress: Progress) -> None:
        self._scorer, self._progress = scorer, progress

    def score(self, request: ScoreRequest) -> ScoreResult:
        """As the scorer inside."""
        results, num_pairs = [], len(request.pairs)
        for start in range(0, num_pairs, _PAIRS_AT_ONCE):
            pairs = request.pairs[start : start + _PAIRS_AT_ONCE]
            results.append(self._scorer.score(replace(request, pairs=pairs)))
            self._progress.step(start + len(pairs), num_pairs, {})
        return join_results(results)

    def describe(self) -> Mapping[str, str]:
        """As the scorer inside."""
        return self._scorer.describe()
