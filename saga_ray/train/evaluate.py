"""Zero-shot retrieval with the trained encoder: one result row, every query's neighbours, and the encoder itself."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from saga_ray import __version__
from saga_ray.config import ConsensusConfig, DataConfig, GRPOConfig, PromptConfig, RunConfig
from saga_ray.configure import label
from saga_ray.encoder.encoder import Encoder
from saga_ray.encoder.export import FOLDER, save_encoder
from saga_ray.leaderboard.result import PerClass, Result
from saga_ray.leaderboard.store import Conflict, ResultStore
from saga_ray.retrieval.metrics import PROTOCOL, retrieval_metrics
from saga_ray.train.context import RunContext
from saga_ray.train.embed import embed_table
from saga_ray.train.run_folder import RunFolder
from saga_ray.types import Dataset, OnProgress

logger = logging.getLogger(__name__)


def evaluate(
    encoder: Encoder,
    config: RunConfig,
    dataset: Dataset,
    context: RunContext,
    run: RunFolder,
    *,
    pretraining: str,
    seconds: float,
    on_images: OnProgress | None = None,
) -> tuple[Result, str] | None:
    """Embed the split of `evaluation.split`, measure, and store row, queries and encoder; rank 0 alone gets a result.

    Args:
        pretraining: identity of the initial weights, see `weights_id`.
        seconds: of the training before.
        on_images: told how many images are embedded, and of how many.

    Returns:
        The row, and `added`, `identical` or `conflict` (another run of this key has other scores; its row stays).
    """
    table = dataset.split(config.evaluation.split)
    began = datetime.now(UTC)
    size, chunk = config.data.image_size, config.evaluation.batch_size
    embeddings_NE = embed_table(encoder, table, size, chunk, context, on_images=on_images)
    if context.rank:
        return None
    metrics = retrieval_metrics(
        embeddings_NE,
        table.labels_N,
        table.image_ids,
        k=config.evaluation.k,
        kmeans_restarts=config.evaluation.kmeans_restarts,
    )
    result = Result(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        split=config.evaluation.split,
        protocol=PROTOCOL,
        backbone=encoder.tower.backbone,
        pretraining=pretraining,
        frozen=config.encoder.trainable == "none",
        dim=embeddings_NE.shape[1],
        label=label(config),
        method=config.method,
        config_hash=config_hash(config),
        seed=config.seed,
        code_version=__version__,
        scores=metrics.scores(),
        per_class=PerClass.model_validate(metrics.per_class(table.class_names)),
        partial=dataset.partial,
        num_images=metrics.num_images,
        num_single_image_classes=metrics.num_single_image_classes,
        seconds=round(seconds + (datetime.now(UTC) - began).total_seconds(), 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=run.name,
    )
    per_query = metrics.per_query_table(table.image_ids, table.class_names)
    save_encoder(encoder, run.storage.child(FOLDER), config.data.image_size)
    run.storage.write("per_query.parquet", _parquet(per_query))
    try:
        stored = ResultStore(run.runs).add(result, per_query)
    except Conflict as conflict:
        logger.warning("%s", conflict)
        stored = "conflict"
    return result, stored


_LATER_KEYS = {
    "data": ("decode", "hard_from", "taxonomy", "taxonomy_digest", "mining_images", "crop_area"),
    "grpo": ("normalisation", "reference_kl"),
    "consensus": ("generations", "first_metric", "first_lr_tower"),
    "prompt": ("answers", "value_tokens"),
}
"""Keys that came after results were stored: at their defaults they change nothing, the hash neither."""


def config_hash(config: RunConfig) -> str:
    """16 hex digits over every key that can change the scores of one seed, without the seed.

    Left out: names and places (data and weights have identities of their own), resources, checkpoints, and how the
    scorer is run, which changes last bits only and is not in the label either.
    """
    values = config.model_dump(
        mode="json", exclude={"seed", "resources", "checkpoint", "evaluation", "recipe", "method", "scorer"}
    )
    values["data"].pop("root")
    if config.data.taxonomy_digest is not None:
        values["data"]["taxonomy"] = None  # a place; the digest says what stands there
    defaults = {"data": DataConfig(), "grpo": GRPOConfig(), "consensus": ConsensusConfig(), "prompt": PromptConfig()}
    for group, keys in _LATER_KEYS.items():
        for key in keys:
            if values[group][key] == getattr(defaults[group], key):
                values[group].pop(key)
    for key in ("path", "device_map", "compile"):  # a place, and how it is run
        values["mllm"].pop(key)
    for key in ("weights", "revision"):  # the tower's weights have an identity of their own
        values["encoder"].pop(key)
    values["prompt"].pop("vocabulary")
    if values["prompt"]["vocabulary_digest"] is None:  # as it was before there was the key
        values["prompt"].pop("vocabulary_digest")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def weights_id(encoder: Encoder, config: RunConfig) -> str:
    """Name of the MLLM whose tower this is, or of timm's model, and 12 hex digits over the tower's weights (before training)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    if config.encoder.tower != "mllm":
        return f"{encoder.tower.backbone}-{digest.hexdigest()[:12]}"
    path = config.mllm.path
    name = "saga-demo" if path is None else (Path(path).name if Path(path).is_dir() else path)
    return f"{name}-{digest.hexdigest()[:12]}"


def _parquet(table: object) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
