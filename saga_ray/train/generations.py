"""Several encoders in one run, each from the initial weights, and what each learns from (`consensus.generations`)."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cached_property

from saga_ray.config import LossWeights, RunConfig


@dataclass(frozen=True)
class Generations:
    """The encoders of a run. The first of several learns without the MLLM; the last has twice as many steps as each other one.

    Args:
        config: of the whole run.
        num_steps: of all generations together.

    Raises:
        ValueError: if not every one of them would have a step.

    Example: of 8 steps and 3 generations, two encoders take 2 steps and the last 4: `starts` is (0, 2, 4).
    """

    config: RunConfig
    num_steps: int

    def __post_init__(self) -> None:
        if 1 < self.config.consensus.generations >= self.num_steps:
            raise ValueError(
                f"consensus.generations: {self.config.consensus.generations} need more than {self.num_steps} steps; raise "
                f"optim.steps or optim.epochs, or set consensus.generations=1"
            )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Steps after which each encoder begins."""
        generations = self.config.consensus.generations
        return tuple(round(number * self.num_steps / (generations + 1)) for number in range(generations))

    def start(self, step: int) -> int:
        """After which step the encoder began that learns in the step after `step`."""
        return self.starts[bisect.bisect_right(self.starts, step) - 1]

    def ends_at(self, step: int) -> bool:
        """True if after `step` another encoder begins."""
        return step in self.starts[1:]

    def config_at(self, step: int) -> RunConfig:
        """What the encoder learns from in the step after `step`."""
        is_first_of_several = len(self.starts) > 1 and step < self.starts[1]
        return self._without_mllm if is_first_of_several else self.config

    @cached_property
    def _without_mllm(self) -> RunConfig:
        config, first = self.config, self.config.consensus
        weights = LossWeights(
            metric=config.loss.weights.metric, anchor=config.loss.weights.anchor,
            grpo=0.0, alignment=0.0, reference_kl=0.0, consensus=0.0,
        )  # fmt: skip
        loss = {"weights": weights, "metric": first.first_metric or config.loss.metric}
        rate = config.optim.lr_tower if first.first_lr_tower is None else first.first_lr_tower
        return config.model_copy(
            update={
                "loss": config.loss.model_copy(update=loss),
                "optim": config.optim.model_copy(update={"lr_tower": rate}),
            }
        )
