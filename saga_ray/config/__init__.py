"""Every setting of a run, as frozen models whose texts are the documentation; `saga_ray.configure` loads and combines them."""

from saga_ray.config.asking import ConsensusConfig, GRPOConfig, MLLMConfig, PromptConfig
from saga_ray.config.base import Config
from saga_ray.config.data import DataConfig
from saga_ray.config.learning import METRIC_LOSSES, LossConfig, LossWeights, OptimConfig, PotentialFieldConfig
from saga_ray.config.run import DATASETS, RECIPES, RunConfig
from saga_ray.config.running import ResourcesConfig

__all__ = [
    "DATASETS", "METRIC_LOSSES", "RECIPES", "Config", "ConsensusConfig", "DataConfig", "GRPOConfig", "LossConfig", "LossWeights",
    "MLLMConfig", "OptimConfig", "PotentialFieldConfig", "PromptConfig", "ResourcesConfig", "RunConfig",
]  # fmt: skip
