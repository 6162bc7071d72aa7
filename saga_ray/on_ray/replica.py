"""A replica of the scorer: one process with the frozen MLLM, one thread that computes, and an event loop that always answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from saga_ray.config import RunConfig
from saga_ray.errors import Refused, marked_refusals
from saga_ray.on_ray.scorer_metrics import Meters
from saga_ray.scorer.engines import Engines, scoring_key
from saga_ray.scorer.parts import kind
from saga_ray.scorer.queue import Job, TokenQueue

if TYPE_CHECKING:
    from saga_ray.scorer.engine import ScoringEngine
    from saga_ray.types import ScoreRequest

REFUSED = "refused"
"""Key of an answer that is a sentence: a refusal is no accident, so it leaves no traceback in a replica's log."""
IDENTITY = "identity"
"""Key of every result's identity: the `describe()` of the engine that it comes from."""
AT_WORK = 16
"""Requests that a replica holds at once: those of its passes, and some that wait for the next."""
TOKENS = "tokens"
"""Name under which a replica tells Serve's autoscaler how many tokens wait or are being scored."""
STUCK_AFTER = 2.0
"""Times `scorer.timeout_s` after which a computation counts as stuck: the replica says that it is ill, and Serve replaces it."""


class ScorerReplica:
    """One process that holds the frozen MLLM; every scoring configuration that asks gets an engine on the same weights.

    Args:
        threads: of torch, outside of deterministic mode.
        folder: where the run was started: relative paths mean the same here, if this machine has that folder.
        warm: configuration whose engine is built before the first request.
        standing: True for a service of its own: runs meet the MLLM of `warm`, wherever theirs lies, and check its identity.
        words: `mllm.vocabulary.own_words` of `warm`.
    """

    def __init__(
        self,
        threads: int,
        folder: str | None = None,
        warm: str | None = None,
        standing: bool = False,
        words: bytes | None = None,
    ) -> None:
        if folder is not None and os.path.isdir(folder):
            os.chdir(folder)
        self._threads = threads
        served = RunConfig.model_validate_json(warm).mllm if warm is not None and standing else None
        self._engines = Engines(served)
        self._meters = Meters()
        self._queue = TokenQueue(self._compute, size=_num_bytes)
        if warm is not None:
            self._queue.submit(Job("warm", 0, partial(self._identity, warm, words))).result()

    async def describe(self, config_json: str, name: str, words: bytes | None = None) -> dict[str, str]:
        """Identity of the engine for a configuration, which is built if it was not yet; arguments as of `score`."""
        return await self._answer(Job(name, 0, partial(self._identity, config_json, words)))

    async def score(
        self, config_json: str, name: str, tokens: int, arrays: Mapping[str, Any], words: bytes | None = None
    ) -> dict[str, Any]:
        """Score a request that came over the wire; the result holds the engine's identity beside its arrays.

        Args:
            name: of the request, the same when it is asked again.
            tokens: most tokens that it can take.
            words: `mllm.vocabulary.own_words` of the configuration, whose file need not lie here.
        """
        from saga_ray.scorer import wire

        try:
            config = _parsed(config_json)
        except Refused as refusal:
            return {REFUSED: str(refusal)}
        request = await asyncio.to_thread(wire.request_from_arrays, arrays)
        # Alone, a pair's shapes depend on the pair only: in deterministic mode a shared pass would gain nothing.
        group = None if config.scorer.deterministic else (scoring_key(config), words, *kind(request))
        limit_s = STUCK_AFTER * config.scorer.timeout_s
        job = Job(name, tokens, (config, words, request), group, config.scorer.tokens_per_request, limit_s)
        return await self._answer(job)

    async def minds(self, name: str) -> bool:
        """True if who waits for this request need not ask again: it waits here or is being scored and will be in time, or
        there is so much to do that it may still wait for a place.
        """
        return self._queue.is_advancing() and (self._queue.holds(name) or self._queue.num_jobs >= AT_WORK // 2)

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
                config, words, _ = jobs[0].work
                replies = self._scored(config, words, [job.work[2] for job in jobs])
                count(replies)
            self._meters.queue(self._queue.num_tokens - sum(job.tokens for job in jobs))
            return replies

    def _scored(self, config: RunConfig, words: bytes | None, requests: Sequence[ScoreRequest]) -> list[dict[str, Any]]:
        from saga_ray.scorer import wire

        engine = self._engine(config, words)
        identity = dict(engine.describe())
        results = [wire.rounded_result(result, engine.mllm.dtype) for result in engine.score_together(requests)]
        return [{**wire.result_to_arrays(result), IDENTITY: identity} for result in results]

    def _identity(self, config_json: str, words: bytes | None) -> dict[str, str]:
        return dict(self._engine(_parsed(config_json), words).describe())

    def _engine(self, config: RunConfig, words: bytes | None) -> ScoringEngine:
        import torch

        torch.set_num_threads(self._threads)
        return self._engines.get(config, words)


def _num_bytes(reply: Mapping[str, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in reply.values())


def _parsed(config_json: str) -> RunConfig:
    try:
        return RunConfig.model_validate_json(config_json)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "config"
        raise Refused(
            f"{place}: the scorer service cannot read this value ({first['msg']}); run it with the same saga-ray"
        ) from None
