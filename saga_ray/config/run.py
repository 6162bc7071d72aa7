"""One run, whole: every setting, and what must hold between them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saga_ray.config.asking import (
    AlignmentConfig,
    ConsensusConfig,
    GRPOConfig,
    MLLMConfig,
    PromptConfig,
    ScorerConfig,
)
from saga_ray.config.base import Config, all_said
from saga_ray.config.data import DataConfig
from saga_ray.config.learning import EncoderConfig, LossConfig, OptimConfig
from saga_ray.config.running import CheckpointConfig, EvaluationConfig, ResourcesConfig

DATASETS = ("demo", "folder", "cub", "cars", "aircraft", "inat-aves")
WITH_TRUTH = ("demo",)
"""Data sets whose true attributes use the words of their prompt."""
RECIPES = ("paper", "demo")


class RunConfig(Config):
    """One run: data set, recipe, method, seed, and every value below them."""

    dataset: Literal[DATASETS]  # type: ignore[valid-type] # names in one place; checkers want them written out
    recipe: Literal[RECIPES]  # type: ignore[valid-type] # names in one place; checkers want them written out
    """Base values: `paper` (as published, Qwen3-VL-8B) or `demo` (the bundled small MLLM)."""
    method: str = "saga"
    """Preset on top of the recipe."""
    seed: int = Field(0, ge=0)
    """Of the plan, the augmentation, the answers and new parameters."""
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    loss: LossConfig = LossConfig()
    grpo: GRPOConfig = GRPOConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    consensus: ConsensusConfig = ConsensusConfig()
    optim: OptimConfig = OptimConfig()
    mllm: MLLMConfig = MLLMConfig()
    prompt: PromptConfig = PromptConfig()
    scorer: ScorerConfig = ScorerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def asks_the_mllm(self) -> bool:
        """True if a loss needs the frozen MLLM, or the run is watched through it."""
        return self.learns_from_the_mllm or (self.encoder.trainable != "none" and self.evaluation.watch_steps > 0)

    @property
    def learns_from_the_mllm(self) -> bool:
        """True if any loss needs the frozen MLLM."""
        weights = self.loss.weights
        asking = (weights.grpo, weights.alignment, weights.reference_kl, weights.consensus)
        return self.encoder.trainable != "none" and max(asking) > 0

    @property
    def samples_answers(self) -> bool:
        """True if any loss needs the MLLM's own answers about the plan's pairs."""
        weights = self.loss.weights
        tallied = weights.consensus if self.refreshes_the_consensus else 0.0
        return self.learns_from_the_mllm and max(weights.grpo, weights.alignment, weights.reference_kl, tallied) > 0

    @property
    def refreshes_the_consensus(self) -> bool:
        """True if what the MLLM writes during training replaces what is taught of the classes."""
        return self.consensus.source != "truth" and self.consensus.generations == 1

    @property
    def needs_reference(self) -> bool:
        """True if any loss needs the tokens of the initial encoder."""
        return self.encoder.trainable != "none" and max(self.loss.weights.reference_kl, self.loss.weights.anchor) > 0

    @model_validator(mode="after")
    def _keys_agree(self) -> RunConfig:
        problems = []
        if self.data.num_shards % self.resources.num_workers:
            problems.append(
                f"resources.num_workers: {self.resources.num_workers} does not divide data.num_shards ({self.data.num_shards}); "
                f"choose a divisor, or raise data.num_shards"
            )
        if self.resources.gpus_per_scorer > 1 and self.mllm.device_map == "one":
            problems.append(
                f"resources.gpus_per_scorer: {self.resources.gpus_per_scorer:g} would leave all but one GPU of a replica idle; set "
                f"mllm.device_map=auto, or resources.gpus_per_scorer=1"
            )
        if self.loss.weights.alignment > 0 and self.encoder.pooler != "attention":
            problems.append(
                f"loss.weights.alignment: {self.loss.weights.alignment} needs encoder.pooler=attention (now {self.encoder.pooler}): "
                f"only that pooler has weights to align; set one of the two"
            )
        first_metric = self.consensus.first_metric or self.loss.metric
        if self.consensus.generations > 1 and (
            0 in (self.loss.weights.consensus, self.loss.weights.metric) or "none" in (first_metric, self.loss.metric)
        ):
            problems.append(
                f"consensus.generations: {self.consensus.generations} needs a consensus and a metric loss to begin with (now "
                f"{first_metric}, then {self.loss.metric}, with loss.weights.consensus={self.loss.weights.consensus:g} and "
                f"loss.weights.metric={self.loss.weights.metric:g}); set them, or consensus.generations=1"
            )
        if self.consensus.generations > 1 and self.encoder.tower == "mllm" and not self.encoder.trains_tower:
            problems.append(
                f"consensus.generations: {self.consensus.generations} would read through the same tower every time, since "
                f"encoder.trainable={self.encoder.trainable} leaves it as it is; set consensus.generations=1"
            )
        if self.optim.steps is not None and 1 < self.consensus.generations >= self.optim.steps > 0:
            problems.append(
                f"consensus.generations: {self.consensus.generations} need more than optim.steps={self.optim.steps} steps; raise "
                f"optim.steps, or set consensus.generations=1"
            )
        if self.grpo.reward == "expected" and self.grpo.top_p < 1:
            problems.append(
                f"grpo.top_p: {self.grpo.top_p} cuts off verdicts whose probability grpo.reward=expected needs; set grpo.top_p=1"
            )
        if self.asks_the_mllm and self.loss.weights.reference_kl > 0 and self.grpo.top_p < 1:
            problems.append(
                f"grpo.top_p: {self.grpo.top_p} cuts off answers that loss.weights.reference_kl compares; set grpo.top_p=1"
            )
        if self.loss.weights.consensus > 0 and self.prompt.variant == "generic":
            problems.append(
                f"loss.weights.consensus: {self.loss.weights.consensus} needs prompt.variant=structured (now generic): "
                f"without descriptions there is nothing to agree on; set one of the two"
            )
        if self.loss.weights.consensus > 0 and self.consensus.source == "truth" and self.dataset not in WITH_TRUTH:
            problems.append(
                f"consensus.source: truth needs a data set whose attributes are known ({', '.join(WITH_TRUTH)}), not "
                f"'{self.dataset}'; set consensus.source=mllm"
            )
        if self.dataset not in ("demo",) and self.data.root is None:
            problems.append(f"data.root: missing; say where the images of '{self.dataset}' are with --data-root DIR")
        return all_said(self, problems)
