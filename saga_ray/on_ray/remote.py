"""The Scorer that asks a Ray Serve application: what a replica's death, silence or nonsense costs is time, never an answer."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RayServeException

from saga_ray.config import RunConfig
from saga_ray.mllm.vocabulary import own_words
from saga_ray.on_ray.replica import IDENTITY, REFUSED
from saga_ray.scorer.parts import join_results, num_parts, split_request, tokens_of_pair
from saga_ray.types import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

# What another replica, or the same one later, may answer: all of it says that a process or the way to it broke.
_WORTH_A_RETRY = (
    RayActorError,
    NodeDiedError,
    WorkerCrashedError,
    ObjectLostError,
    RayServeException,
    TimeoutError,
    ConnectionError,
)
_LOOK_EVERY_S = 10.0
"""Seconds after which one who waits looks whether the service is still there."""
_LONGEST_PAUSE_S = 30.0
_SAY_WITHIN_S = 5.0
"""Seconds in which a replica says whether it minds a request; its event loop has nothing else to do."""


class RemoteScorer:
    """Scorer behind Ray Serve.

    Randomness is keyed by seed, micro-batch and pair, so that asking again gives the same answers. A question is asked again
    only if no replica holds it any more; it keeps its name, so that the replica that answered it has the answer still.
    Serve may bring it to another one, which computes it once more, with the same result. Pairs of a request are split over
    requests of bounded tokens and put together in plan order; that changes nothing (laws 2 and 5 of the scorer).

    Args:
        app: name of the Serve application behind `handle`; None where there is none to look for.

    Raises:
        ValueError: if the vocabulary's file cannot be read here: its words travel, since replicas may not have it.
    """

    def __init__(self, handle: DeploymentHandle, config: RunConfig, app: str | None = None) -> None:
        self._handle, self._config, self._app = handle, config, app
        self._json, self._words = config.model_dump_json(), own_words(config)
        in_flight = config.scorer.requests_in_flight or 2 * config.resources.most_scorers
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="scorer")
        self._identity: Mapping[str, str] | None = None

    def describe(self) -> Mapping[str, str]:
        """Identity of the engine that answered first, which every result must share; asking for it loads the weights.

        Raises:
            ValueError: if weights, prompt or code are not this run's; or as `score`.
        """
        if self._identity is None:
            from saga_ray.scorer.identity import check_identity

            told = self._ask(lambda name: self._handle.describe.remote(self._json, name, self._words), dict)
            check_identity(told, self._config, self._where)
            self._identity = told
        return self._identity

    @property
    def _where(self) -> str:
        return self._app or "the scorer"

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Score the request's pairs on as many replicas as there are.

        Raises:
            ValueError: if the service does not answer after `scorer.max_retries` retries, or refuses the request, or is no
                longer the one that answered first.
        """
        return self.begin(request)()

    def begin(self, request: ScoreRequest) -> Callable[[], ScoreResult]:
        """Send a request off; the answer, or the refusal, comes from calling what is returned, which waits for it."""
        from saga_ray.scorer import wire

        try:
            answers = self._sent(request)
        except ValueError as error:
            refusal: Future = Future()
            refusal.set_exception(error)
            answers = [refusal]
        tokens_NLTD = request.tokens.tokens_NLTD

        def result() -> ScoreResult:
            try:
                whole = join_results([answer.result() for answer in answers])
            finally:
                for answer in answers:  # after a failure: what has not begun is of no use any more
                    answer.cancel()
            return wire.on_device(wire.rounded_result(whole, tokens_NLTD.dtype), tokens_NLTD.device)

        return result

    def _sent(self, request: ScoreRequest) -> list[Future]:
        from saga_ray.scorer import wire
        from saga_ray.scorer.checks import Reads, check_request

        told = self.describe()
        check_request(request, Reads.told(told))
        rounded = wire.rounded_request(request, wire.wire_dtype(told["dtype"]))
        per_pair = tokens_of_pair(request, told, self._config.grpo.group_size)
        budget, at_least = self._config.scorer.tokens_per_request, self._config.resources.num_scorers
        parts = split_request(rounded, num_parts(len(request.pairs), per_pair, budget, at_least))
        return [self._pool.submit(self._score_part, part, per_pair) for part in parts]

    def _score_part(self, part: ScoreRequest, tokens_per_pair: int) -> ScoreResult:
        from saga_ray.scorer import wire
        from saga_ray.scorer.checks import check_result
        from saga_ray.scorer.identity import check_unchanged

        arrays = wire.request_to_arrays(part)
        tokens = len(part.pairs) * tokens_per_pair
        began = self.describe()

        def taken(reply: Mapping[str, Any]) -> ScoreResult:
            reply = dict(reply)
            # First of all: other weights may well answer in other shapes.
            check_unchanged(reply.pop(IDENTITY, {}), began, self._where)
            result = wire.result_from_arrays(reply)
            check_result(result, part, self._config.grpo.group_size)
            return result

        return self._ask(lambda name: self._handle.score.remote(self._json, name, tokens, arrays, self._words), taken)

    def _ask(self, call: Callable[[str], Any], taken: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Ask until an answer can be taken.

        Args:
            call: sends the question off under a name.
            taken: turns a reply into an answer, or raises BadReply.
        """
        from saga_ray.scorer.checks import BadReply

        settings, name = self._config.scorer, uuid.uuid4().hex
        cause: BaseException | None = None
        for attempt in range(settings.max_retries + 1):
            if cause is not None:
                logger.warning("scorer: %s; asking again (%d of %d)", _short(cause), attempt, settings.max_retries)
                time.sleep(min(_LONGEST_PAUSE_S, 0.5 * 2**attempt))
                self._check_there()
            try:
                reply = self._once(partial(call, name), name)
                if REFUSED in reply:
                    raise ValueError(str(reply[REFUSED]))
                return taken(reply)
            except BadReply as error:
                cause, name = error, uuid.uuid4().hex  # under its old name the replica would remember its answer
            except _WORTH_A_RETRY as error:
                cause = error
        raise ValueError(
            f"scorer.max_retries: the scorer did not answer {settings.max_retries + 1} times (each within scorer.timeout_s="
            f"{settings.timeout_s:g}; last: {_short(cause)}); the run stopped at its last checkpoint, the same command goes on from there"
        )

    def _once(self, call: Callable[[], Any], name: str) -> Mapping[str, Any]:
        """One attempt; its time is over after `scorer.timeout_s` in which no replica was at it.

        Being turned away by a full queue is no failure: it is tried again until then.
        """
        timeout_s = self._config.scorer.timeout_s
        latest = time.monotonic() + timeout_s
        response, pause_s = call(), 0.05
        while True:
            left_s = latest - time.monotonic()
            try:
                return response.result(timeout_s=max(0.0, min(left_s, _LOOK_EVERY_S)))
            except BackPressureError:
                if left_s <= pause_s:
                    raise
                time.sleep(pause_s)
                response, pause_s = call(), min(2.0, 2 * pause_s)
            except TimeoutError as error:
                if isinstance(error, RayTaskError):
                    raise
                self._check_there()
                if left_s > _LOOK_EVERY_S:
                    continue
                if not self._is_minded(name):
                    raise TimeoutError(
                        f"no reply, and no replica at work on the request for {timeout_s:g} s"
                    ) from error
                latest = time.monotonic() + min(timeout_s, _LOOK_EVERY_S)

    def _is_minded(self, name: str) -> bool:
        """True if a replica says that the request waits its turn there, or is being scored and not stuck."""
        try:
            said = self._handle.broadcast("minds", name).results(timeout_s=_SAY_WITHIN_S, return_exceptions=True)
        except _WORTH_A_RETRY:
            return False
        return any(each is True for each in said)

    def _check_there(self) -> None:
        """Nobody waits for a service that has been taken away."""
        if self._app is not None and not is_there(self._app):
            raise ValueError(
                f"scorer.service: {self._app} is gone; the run stopped at its last checkpoint. Start the service again, or give "
                f"another scorer.service, and type the same command to go on from there"
            )


def is_there(app: str) -> bool:
    """True if a Serve application of this name runs or is being started."""
    try:
        found = serve.status().applications.get(app)
    except (RayServeException, ActorDiedError):  # no Serve at all, or no longer
        return False
    except RayActorError:  # its controller is being started again: nothing is known
        return True
    return found is not None and found.status not in ("DELETING", "NOT_STARTED")


def remote_scorer(app: str, config: RunConfig) -> RemoteScorer:
    """Scorer for one run, on an application that `serve.scorer_service`, `saga-ray serve` or a RayService started.

    Raises:
        ValueError: if there is none of this name.
    """
    if not is_there(app):
        raise ValueError(
            f"scorer.service: no service '{app}' runs on this cluster; start it with `saga-ray serve --name {app}`, or leave "
            f"scorer.service out so that the run starts its own"
        )
    return RemoteScorer(serve.get_app_handle(app), config, app)


def _short(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
