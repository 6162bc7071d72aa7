"""Settings of what is trained, for what, and how."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from saga_ray.config.base import Config, Share, Weight, all_said

METRIC_LOSSES = (
    "none", "potential-field", "proxy-anchor", "multi-similarity", "infonce",
    "contrastive", "triplet", "proxy-nca", "circle", "arcface",
)  # fmt: skip
MetricLoss = Literal[METRIC_LOSSES]  # type: ignore[valid-type] # names in one place; checkers want them written out


class EncoderConfig(Config):
    """The network that is trained and kept: vision tower and pooler."""

    tower: str = "mllm"
    """`mllm`: a trainable copy of the MLLM's own vision tower, as in the paper. `timm:NAME`: a model of timm, such as
    `timm:vit_small_patch16_224`, with a new connector to the MLLM's width."""
    weights: str | None = None
    """Weights of a timm tower: a .safetensors file, or `hub` for the model's own; null begins with random ones."""
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    """Commit of `encoder.weights=hub`, 40 hex digits; required for it, since a branch or tag may move."""
    pooler: Literal["mean", "max", "attention"] = "attention"
    """How visual tokens become one embedding (paper: attention for SAGA, mean for the baselines)."""
    dim: int | None = Field(None, ge=2)
    """Width of the embedding; null keeps the tower's width (paper: 4096)."""
    trainable: str = "all"
    """Which parameters learn: `all`; `blocks:N`, the tower's last N blocks and what stands behind them; `norms`, the tower's
    normalisations alone; `pooler`, nothing of the tower; each with pooler and new connector. `none` evaluates the
    pre-trained encoder."""

    @property
    def trains_tower(self) -> bool:
        """True if the tower learns, or a part of it."""
        return self.trainable not in ("pooler", "none")

    @model_validator(mode="after")
    def _names_are_known(self) -> EncoderConfig:
        problems = []
        if self.tower != "mllm" and not re.fullmatch(r"timm:[\w.]+", self.tower):
            problems.append(
                f"encoder.tower: {self.tower!r} is unknown; choose mllm, or timm:NAME such as timm:vit_small_patch16_224"
            )
        if not re.fullmatch(r"all|norms|pooler|none|blocks:[1-9]\d*", self.trainable):
            problems.append(
                f"encoder.trainable: {self.trainable!r} is unknown; choose all, blocks:N (the last N blocks), norms, pooler or none"
            )
        if self.tower == "mllm" and (self.weights is not None or self.revision is not None):
            problems.append(
                "encoder.weights: without effect for encoder.tower=mllm, whose weights are those of mllm.path; leave it and "
                "encoder.revision out"
            )
        return all_said(self, problems)


class LossWeights(Config):
    """Factors of the losses in their sum; each loss is a mean over its own unit (batch, generated tokens, attribute tokens)."""

    metric: Weight = 1.0
    """Metric-learning loss on the pooled embeddings."""
    grpo: Weight = 1.0
    """Verdict reward, through the frozen MLLM into the tower."""
    alignment: Weight = 1.0
    """KL from the MLLM's attention to the pooler's."""
    reference_kl: Weight = 0.0
    """KL from the reference policy, which is the same MLLM looking through the initial encoder, on the sampled answers."""
    anchor: Weight = 0.0
    """Mean squared distance of all tokens to those of the initial encoder, in units of their mean square; asks no MLLM."""
    consensus: Weight = 0.0
    """Cross-entropy of the words that the MLLM agrees on for the class (`consensus.*`), through the frozen MLLM into the tower."""


class PotentialFieldConfig(Config):
    """Potential Field (arXiv 2405.18560)."""

    alpha: float = Field(4.0, gt=0)
    """Exponent of the decay: the force falls as distance^-(alpha + 1)."""
    delta: float = Field(0.3, gt=0, le=2.0)
    """Radius (unit sphere): attraction stops below it, repulsion beyond it."""
    proxies_per_class: int = Field(4, ge=1)
    """Learnable charges of every class (M)."""


class LossConfig(Config):
    """What the encoder is trained for."""

    metric: MetricLoss = "potential-field"
    """Metric-learning loss."""
    weights: LossWeights = LossWeights()
    potential_field: PotentialFieldConfig = PotentialFieldConfig()


class OptimConfig(Config):
    """AdamW, cosine with warm-up, global clipping."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training images, at one micro-batch per step (or M without refill)."""
    steps: int | None = Field(None, ge=0)
    """Optimiser steps; overrides epochs."""
    lr_tower: float = Field(2e-5, ge=0)
    """Learning rate of the tower."""
    lr_pooler: float = Field(1e-4, ge=0)
    """Learning rate of the pooler."""
    lr_proxies: float = Field(1e-2, ge=0)
    """Learning rate of the metric loss's own parameters (not published)."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's, for tower and pooler (not published)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's (not published)."""
    warmup_share: Share = 0.05
    """Share of the steps with linear warm-up."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
