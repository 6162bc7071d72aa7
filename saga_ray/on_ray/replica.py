"""A replica of the scorer: one process with the frozen MLLM, one thread that computes, and an event loop that always answers."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from saga_ray.config import RunConfig
from saga_ray.errors import Refused, marked_refusals
from saga_ray.on_ray.scorer_metrics import Meters
from saga_ray.scorer.parts import kind
from saga_ray.scorer.queue import Job, TokenQueue

if TYPE_CHECKING:
    from saga_ray.scorer.engine import ScoringEngine
    from saga_ray.types import ScoreRequest

REFUSED = "refused"
"""Key of an answer that is a sentence: a refusal is no accident, so it leaves no traceback in a replica's log."""
TOKENS = "tokens"
"""Name under which a replica tells Serve's autoscaler how many tokens wait or are being scored."""
STUCK_AFTER = 2.0
"""Times `scorer.timeout_s` after which a computation counts as stuck. A caller asks again after one, and finds its question
still at work; after two the replica says that it is ill, and Serve replaces it."""
_MAX_ENGINES = 8
# What an engine does not know; a key that is added elsewhere counts as known until it is named here.
_OF_THE_TRAINER = {"contributing_pairs", "max_micro_batches", "refill"}
_OF_THE_WAY = {"service", "timeout_s", "max_retries", "tokens_per_request", "requests_in_flight", "store_answers"}


class ScorerReplica:
    """One process that holds the frozen MLLM; every scoring configuration that asks gets an engine on the same weights.

    Args:
        threads: of torch, outside of deterministic mode.
        folder: where the run was started: relative paths mean the same here, if this machine has that folder.
        warm: configuration whose engine is built before the first request.
        standing: True for a service of its own: runs meet the MLLM of `warm`, wherever theirs lies, and check its identity.
    """

    def __init__(
        self, threads: int, folder: str | None = None, warm: str | None = None, standing: bool = False
    ) -> None:
        if folder is not None and os.path.isdir(folder):
            os.chdir(folder)
        self._threads = threads
        self._models: dict[str, Any] = {}
        self._engines: OrderedDict[str, ScoringEngine] = OrderedDict()
        self._served = RunConfig.model_validate_json(warm).mllm if warm is not None and standing else None
        self._meters = Meters()
        self._queue = TokenQueue(self._compute)
        if warm is not None:
            self._queue.submit(self._call(partial(self._identity, warm))).result()

    async def describe(self, config_json: str) -> dict[str, str]:
        """Identity of the engine for a configuration, which is built if it was not yet."""
        return await self._answer(self._call(partial(self._identity, config_json)))

    async def score(self, config_json: str, name: str, tokens: int, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Score a request that came over the wire.

        Args:
            name: of the request, the same when it is asked again.
            tokens: most tokens that it can take.
        """
        from saga_ray.scorer import wire

        try:
            config = _parsed(config_json)
        except Refused as refusal:
            return {REFUSED: str(refusal)}
        request = await asyncio.to_thread(wire.request_from_arrays, arrays)
        # Alone, a pair's shapes depend on the pair only: in deterministic mode a shared pass would gain nothing.
        group = None if config.scorer.deterministic else (scoring_key(config), *kind(request))
        limit_s = STUCK_AFTER * config.scorer.timeout_s
        job = Job(name, tokens, (config_json, request), group, config.scorer.tokens_per_request, limit_s)
        return await self._answer(job)

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here, or does not answer."""
        if not self._queue.is_working():
            raise RuntimeError("the thread that computes has ended")
        if self._queue.stuck_s() > 0:
            raise RuntimeError(f"a computation takes {self._queue.stuck_s():.0f} s longer than it may")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler is told."""
        return {TOKENS: float(self._queue.num_tokens)}

    async def process_id(self) -> int:
        """Process that answers, for tests and messages."""
        return os.getpid()

    @staticmethod
    def _call(what: Callable[[], Any]) -> Job:
        return Job(uuid.uuid4().hex, 0, what)

    async def _answer(self, job: Job) -> Any:
        future = self._queue.submit(job)
        self._meters.queue(self._queue.num_tokens)
        try:
            # Shielded: who asked may go away, while somebody who asks the same again waits for the same future.
            return await asyncio.shield(asyncio.wrap_future(future))
        except Refused as refusal:
            return {REFUSED: str(refusal)}

    def _compute(self, jobs: Sequence[Job]) -> list[Any]:
        with marked_refusals():
            if callable(jobs[0].work):
                return [job.work() for job in jobs]
            budget = max(jobs[0].budget, sum(job.tokens for job in jobs))
            with self._meters.batch(sum(job.tokens for job in jobs) / budget) as count:
                replies = self._scored(jobs[0].work[0], [job.work[1] for job in jobs])
                count(replies)
            self._meters.queue(self._queue.num_tokens - sum(job.tokens for job in jobs))
            return replies

    def _scored(self, config_json: str, requests: Sequence[ScoreRequest]) -> list[dict[str, Any]]:
        from saga_ray.scorer import wire

        engine = self._engine(config_json)
        results = engine.score_together(requests)
        return [wire.result_to_arrays(wire.rounded_result(result, engine.mllm.dtype)) for result in results]

    def _identity(self, config_json: str) -> dict[str, str]:
        return dict(self._engine(config_json).describe())

    def _engine(self, config_json: str) -> ScoringEngine:
        import torch

        config = _parsed(config_json)
        torch.set_num_threads(config.scorer.threads if config.scorer.deterministic else self._threads)
        key = scoring_key(config)
        if key in self._engines:
            self._engines.move_to_end(key)
            return self._engines[key]
        from saga_ray.mllm.loading import load_mllm
        from saga_ray.scorer.engine import ScoringEngine
        from saga_ray.scorer.prompt import prompt_in

        served = self._served or config.mllm
        weights = served.model_dump_json()
        if weights not in self._models:
            self._models[weights] = load_mllm(served)
        mllm = self._models[weights]
        prompt = prompt_in(config, mllm.folder)
        self._engines[key] = ScoringEngine(mllm, prompt, config)
        while len(self._engines) > _MAX_ENGINES:
            self._engines.popitem(last=False)
        return self._engines[key]


def _parsed(config_json: str) -> RunConfig:
    try:
        return RunConfig.model_validate_json(config_json)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "config"
        raise Refused(
            f"{place}: the scorer service cannot read this value ({first['msg']}); run it with the same saga-ray"
        ) from None


def scoring_key(config: RunConfig) -> str:
    """The part of a configuration that a scoring engine depends on; runs that share it share an engine, and its passes."""
    parts = {"dataset", "mllm", "prompt", "grpo", "alignment", "scorer"}
    return config.model_dump_json(include=parts, exclude={"grpo": _OF_THE_TRAINER, "scorer": _OF_THE_WAY})
