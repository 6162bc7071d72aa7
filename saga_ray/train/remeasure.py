"""Measures a stored encoder again: from its files, the data set and the run's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from saga_ray.configure import from_yaml, with_override
from saga_ray.data import load_dataset
from saga_ray.encoder.export import load_encoder
from saga_ray.retrieval.metrics import retrieval_metrics
from saga_ray.scorer.determinism import deterministic
from saga_ray.storage import Storage
from saga_ray.train.context import LocalContext, default_device
from saga_ray.train.embed import embed_table
from saga_ray.train.progress import Progress, Silent
from saga_ray.train.run_folder import CONFIG, RESULT

TOLERANCE = 2e-3
"""Scores of one encoder differ by less on another machine: a rounded cosine can turn a neighbour or two round."""


@dataclass(frozen=True)
class Remeasured:
    """Scores now, and those in the run's folder if they were taken on the same split and data."""

    scores: Mapping[str, float]
    stored: Mapping[str, float] | None

    @property
    def agrees(self) -> bool:
        """True if every score is the stored one but for rounding; NMI is left out, its clusters may flip as a whole."""
        assert self.stored is not None
        names = [name for name in self.scores if name != "nmi"]
        return all(abs(self.scores[name] - self.stored.get(name, -1.0)) <= TOLERANCE for name in names)


def remeasure(
    run: str, *, split: str | None = None, data_root: str | None = None, progress: Progress | None = None
) -> Remeasured:
    """Embed a split with the encoder that the run holds, and score it.

    Raises:
        ValueError: if the folder holds no finished run, or the data set cannot be read.
    """
    folder = Storage.open(run)
    if not folder.exists(CONFIG) or not folder.exists(RESULT):
        raise ValueError(
            f"{run}: is not the folder of a finished run ({CONFIG} or {RESULT} is missing); name one, such as runs/NAME"
        )
    config = from_yaml(folder.read(CONFIG).decode(), f"{run}/{CONFIG}")
    if data_root is not None:
        config = with_override(config, "data.root", data_root)
    try:
        row = json.loads(folder.read(RESULT))
    except ValueError:
        raise ValueError(f"{run}/{RESULT}: is not readable JSON; train the run again under another name") from None
    split, progress = split or config.evaluation.split, progress or Silent()
    dataset = load_dataset(config)
    table = dataset.split(split)
    encoder = load_encoder(run).encoder.to(default_device())
    size, chunk = config.data.image_size, config.evaluation.batch_size
    progress.stage(f"embedding {len(table)} {split} images")
    with deterministic(config):
        embeddings_NE = embed_table(encoder, table, size, chunk, LocalContext(), on_images=progress.part)
    progress.stage("ranking")
    metrics = retrieval_metrics(
        embeddings_NE,
        table.labels_N,
        table.image_ids,
        k=config.evaluation.k,
        kmeans_restarts=config.evaluation.kmeans_restarts,
    )
    same = row.get("split") == split and row.get("fingerprint") == dataset.fingerprint
    return Remeasured(metrics.scores(), row["scores"] if same else None)
