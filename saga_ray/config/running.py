"""Settings of checkpoints, resources and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saga_ray.config.base import Config, all_said


class CheckpointConfig(Config):
    """When progress is made safe."""

    every_steps: int = Field(50, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept."""


class ResourcesConfig(Config):
    """What a run asks of Ray; without effect on its numbers."""

    num_workers: int = Field(1, ge=1)
    """Training workers; must divide data.num_shards."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    num_scorers: int = Field(1, ge=1)
    """Replicas that hold the frozen MLLM."""
    max_scorers: int | None = Field(None, ge=1)
    """Replicas are added up to this number while more than scorer.tokens_per_request tokens wait for each, and go again; null keeps
    to num_scorers. One run with the paper's recipe has some 140,000 tokens under way: for it alone lower that key as well."""
    cpus_per_scorer: float = Field(0.5, gt=0)
    gpus_per_scorer: float = Field(0.0, ge=0)
    """GPUs of a replica: below 1 several replicas share one, above 1 the MLLM's layers are spread over them (mllm.device_map=auto)."""
    cpus_per_data_task: float = Field(0.25, gt=0)
    read_ahead_mb: float = Field(256.0, gt=0)
    """Decoded micro-batches that each worker's stream may hold in Ray's object store, in MB; two of each decoding task at least."""

    @property
    def most_scorers(self) -> int:
        """Replicas at most."""
        return self.max_scorers or self.num_scorers

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ResourcesConfig:
        problems = []
        if self.most_scorers < self.num_scorers:
            problems.append(
                f"resources.max_scorers: {self.max_scorers} is less than resources.num_scorers ({self.num_scorers}); raise it, "
                f"or leave it out"
            )
        if self.gpus_per_scorer > 1 and self.gpus_per_scorer % 1:
            problems.append(
                f"resources.gpus_per_scorer: {self.gpus_per_scorer:g} is neither a share of one GPU nor a number of whole ones; "
                f"choose a number up to 1, or 2, 3, ..."
            )
        return all_said(self, problems)


class EvaluationConfig(Config):
    """Zero-shot retrieval on unseen classes."""

    split: Literal["validation", "test"] = "test"
    """Whose classes are queried; sweeps choose on validation."""
    k: tuple[int, ...] = (1, 2, 4, 8)
    """Recall@k, as hit rate."""
    batch_size: int = Field(128, ge=1)
    """Images embedded at once."""
    check_images: bool = True
    """Decode the images of validation and test classes before the first step, so that a broken one does not stop the run after the
    last: once for each data set and folder of runs, some 10 s for 10,000 photographs of 500 x 375 pixels on two cores."""
    watch_steps: int = Field(0, ge=0)
    """Every so many steps the MLLM is asked about some pairs of validation classes, for the log, also in a run
    that learns nothing from it; 0 never asks."""
    kmeans_restarts: int = Field(4, ge=1)
    """Starts of the k-means behind NMI."""
