"""Scoring engines of many configurations on few MLLMs: which are kept, and which make room."""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import TYPE_CHECKING

from saga_ray.config import MLLMConfig, RunConfig

if TYPE_CHECKING:
    from saga_ray.mllm.frozen import FrozenMLLM
    from saga_ray.scorer.engine import ScoringEngine

MAX_ENGINES = 8
MAX_MODELS = 2
# What an engine does not know; a key that is added elsewhere counts as known until it is named here.
_OF_THE_TRAINER = {"contributing_pairs", "max_micro_batches", "refill"}
_OF_THE_WAY = {"service", "timeout_s", "max_retries", "tokens_per_request", "requests_in_flight", "store_answers"}


class Engines:
    """Scoring engines by configuration. Those that were asked least lately make room, and an MLLM goes with its engines.

    Args:
        served: the MLLM that every run meets, wherever its own lies; None takes that of each configuration.
    """

    def __init__(self, served: MLLMConfig | None = None) -> None:
        self._served = served
        self._models: OrderedDict[str, FrozenMLLM] = OrderedDict()
        self._engines: OrderedDict[tuple[str, str, bytes | None], ScoringEngine] = OrderedDict()

    def get(self, config: RunConfig, words: bytes | None = None) -> ScoringEngine:
        """The engine of a configuration, built if there is none.

        Args:
            words: content of its vocabulary's file, which may lie elsewhere; None reads the file.

        Raises:
            ValueError: for an MLLM folder, a vocabulary or a prompt file that cannot be used.
        """
        from saga_ray.scorer.engine import ScoringEngine
        from saga_ray.scorer.prompt import prompt_in

        wanted = self._served or config.mllm
        weights = wanted.model_dump_json()
        key = (weights, scoring_key(config), words)
        if key not in self._engines:
            mllm = self._model(weights, wanted)
            self._engines[key] = ScoringEngine(mllm, prompt_in(config, mllm.folder, words), config)
            while len(self._engines) > MAX_ENGINES:
                self._engines.popitem(last=False)
        self._engines.move_to_end(key)
        self._models.move_to_end(weights)
        return self._engines[key]

    def _model(self, weights: str, wanted: MLLMConfig) -> FrozenMLLM:
        from saga_ray.mllm.loading import check_folder, load_mllm
        from saga_ray.model_folder import model_folder

        if weights not in self._models:
            check_folder(model_folder(wanted.path, wanted.revision))  # nothing makes room for what is not there
            while len(self._models) >= MAX_MODELS:
                oldest, _ = self._models.popitem(last=False)
                for key in [key for key in self._engines if key[0] == oldest]:
                    del self._engines[key]
            gc.collect()
            self._models[weights] = load_mllm(wanted)
        return self._models[weights]


def scoring_key(config: RunConfig) -> str:
    """The part of a configuration that a scoring engine depends on; runs that share it share an engine, and its passes."""
    parts = {"dataset", "mllm", "prompt", "grpo", "alignment", "scorer"}
    return config.model_dump_json(include=parts, exclude={"grpo": _OF_THE_TRAINER, "scorer": _OF_THE_WAY})
