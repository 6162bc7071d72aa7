"""The frozen MLLM as a Ray Serve application, and the Scorer that asks it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray._private import state
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.errors import Refused, marked_refusals
from saga_ray.on_ray.cluster import Cluster
from saga_ray.on_ray.resources import scorer_threads
from saga_ray.scorer.parts import join_results
from saga_ray.types import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    import torch

    from saga_ray.scorer.engine import ScoringEngine

logger = logging.getLogger(__name__)

APP_VARIABLE = "SAGA_RAY_SCORER_APP"
"""Name of a standing scorer application (`cluster/kuberay-rayservice.yaml`) to use in place of an own one."""

_APP_PREFIX = "saga-ray-scorer-"
_OWN_APP = re.compile(rf"{_APP_PREFIX}([0-9a-f]+)-[0-9a-f]{{12}}")
"""Name of an application of ours: the Ray job of the driver that ends it, and a number."""

# What another replica, or the same one later, may answer: all of it says that a process or the way to it broke.
_WORTH_A_RETRY = (
    RayActorError,
    NodeDiedError,
    WorkerCrashedError,
    ObjectLostError,
    BackPressureError,
    RayServeException,
    GetTimeoutError,
    TimeoutError,
    ConnectionError,
)
_MAX_ENGINES = 8


class ScorerReplica:
    """One process that holds the frozen MLLM; every scoring configuration that asks gets an engine on the same weights."""

    def __init__(self, threads: int, folder: str | None = None, warm: str | None = None) -> None:
        # Relative paths mean the same here as where the run was started, if this machine has that folder.
        if folder is not None and os.path.isdir(folder):
            os.chdir(folder)
        self._threads = threads
        self._models: dict[str, Any] = {}
        self._engines: OrderedDict[str, ScoringEngine] = OrderedDict()
        # Serve runs requests on a pool of threads; one model does one thing at a time.
        self._lock = threading.Lock()
        if warm is not None:
            self.describe(warm)

    def describe(self, config_json: str) -> dict[str, str]:
        """Identity of the engine for a configuration, which is built if it was not yet."""
        with self._lock, marked_refusals():
            return dict(self._engine(config_json).describe())

    def score(self, config_json: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Score a request that came over the wire."""
        from saga_ray.scorer import wire

        with self._lock, marked_refusals():
            engine = self._engine(config_json)
            result = engine.score(wire.request_from_arrays(request))
            return wire.result_to_arrays(wire.rounded_result(result, engine.mllm.dtype))

    def process_id(self) -> int:
        """Process that answers, for tests and messages."""
        return os.getpid()

    def _engine(self, config_json: str) -> ScoringEngine:
        import torch

        config = RunConfig.model_validate_json(config_json)
        torch.set_num_threads(config.scorer.threads if config.scorer.deterministic else self._threads)
        key = scoring_key(config)
        if key in self._engines:
            self._engines.move_to_end(key)
            return self._engines[key]
        from saga_ray.mllm.loading import load_mllm
        from saga_ray.scorer.engine import ScoringEngine
        from saga_ray.scorer.prompt import prompt_in

        weights = config.mllm.model_dump_json()
        if weights not in self._models:
            self._models[weights] = load_mllm(config.mllm)
        mllm = self._models[weights]
        prompt = prompt_in(config, mllm.folder)
        self._engines[key] = ScoringEngine(mllm, prompt, config)
        while len(self._engines) > _MAX_ENGINES:
            self._engines.popitem(last=False)
        return self._engines[key]


def scoring_key(config: RunConfig) -> str:
    """The part of a configuration that a scoring engine depends on; runs that share it share an engine."""
    return config.model_dump_json(include={"dataset", "mllm", "prompt", "grpo", "alignment", "scorer"})


class RemoteScorer:
    """Scorer behind Ray Serve: what a replica's death or silence costs is time, never an answer.

    Randomness is keyed by seed, micro-batch and pair, so that asking again gives the same answers. Pairs of a request
    are split over replicas and put together in plan order; that changes nothing (law 2 of the scorer).
    """

    def __init__(self, handle: DeploymentHandle, config: RunConfig) -> None:
        self._handle = handle
        self._config = config
        self._json = config.model_dump_json()
        self._num_parts = config.resources.num_scorers
        self._pool = ThreadPoolExecutor(self._num_parts, thread_name_prefix="scorer")
        self._identity: Mapping[str, str] | None = None

    def describe(self) -> Mapping[str, str]:
        """Identity of the engine that answered first; asking for it loads the weights."""
        if self._identity is None:
            self._identity = self._ask(lambda: self._handle.describe.remote(self._json))
        return self._identity

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Score the request's pairs on as many replicas as there are.

        Raises:
            ValueError: if the service does not answer after `scorer.max_retries` retries, or refuses the request.
        """
        from saga_ray.scorer import wire

        dtype = wire.wire_dtype(self.describe()["dtype"])
        tokens_NLTD = request.tokens.tokens_NLTD
        rounded = wire.rounded_request(request, dtype)

        def score_part(part: ScoreRequest) -> ScoreResult:
            arrays = wire.request_to_arrays(part)
            return wire.result_from_arrays(self._ask(lambda: self._handle.score.remote(self._json, arrays)))

        parts = list(self._pool.map(score_part, split_request(rounded, self._num_parts)))
        return _on_device(wire.delivered_result(join_results(parts), tokens_NLTD.dtype), tokens_NLTD.device)

    def _ask(self, call: Callable[[], Any]) -> Any:
        settings = self._config.scorer
        cause: BaseException | None = None
        for attempt in range(settings.max_retries + 1):
            if cause is not None:
                logger.warning("scorer: %s; asking again (%d of %d)", _short(cause), attempt, settings.max_retries)
                time.sleep(min(30.0, 0.5 * 2**attempt))
            try:
                return call().result(timeout_s=settings.timeout_s)
            except RayTaskError as error:
                # The request itself fails there and would fail again.
                if isinstance(error.cause, Refused):
                    raise ValueError(str(error.cause)) from None
                raise
            except _WORTH_A_RETRY as error:
                cause = error
        raise ValueError(
            f"scorer.max_retries: the scorer did not answer {settings.max_retries + 1} times (scorer.timeout_s="
            f"{settings.timeout_s:g}; last: {_short(cause)}); the run stopped at its last checkpoint, the same command goes on from there"
        )


def _on_device(result: ScoreResult, device: torch.device) -> ScoreResult:
    if device.type == "cpu":
        return result
    import torch

    values = {name: getattr(result, name) for name in result.__dataclass_fields__}
    return replace(result, **{name: v.to(device) for name, v in values.items() if isinstance(v, torch.Tensor)})


def _short(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def split_request(request: ScoreRequest, num_parts: int) -> list[ScoreRequest]:
    """Cut the pairs into at most `num_parts` runs of plan order; each part carries only the images that it shows."""
    num_pairs = len(request.pairs)
    num_parts = max(1, min(num_parts, num_pairs))
    if num_parts == 1:
        return [request]
    parts = []
    for start, stop in _runs(num_pairs, num_parts):
        pairs = request.pairs[start:stop]
        images = sorted({position for pair in pairs for position in (pair.first, pair.second)})
        where = {image: position for position, image in enumerate(images)}
        parts.append(
            replace(
                request,
                pairs=tuple(replace(p, first=where[p.first], second=where[p.second]) for p in pairs),
                tokens=replace(request.tokens, tokens_NLTD=request.tokens.tokens_NLTD[images]),
                reference=(
                    None
                    if request.reference is None
                    else replace(request.reference, tokens_NLTD=request.reference.tokens_NLTD[images])
                ),
                answers=None if request.answers is None else request.answers[start:stop],
                rewards_PG=None if request.rewards_PG is None else request.rewards_PG[start:stop],
            )
        )
    return parts


def _runs(length: int, num_parts: int) -> Iterator[tuple[int, int]]:
    edges = [length * part // num_parts for part in range(num_parts + 1)]
    yield from itertools.pairwise(edges)


def scorer_app(config: RunConfig, threads: int, *, num_replicas: int, selector: Mapping[str, str], warm: bool) -> Any:
    """The Serve application: `num_replicas` processes that hold the MLLM of `config`."""
    options: dict[str, Any] = {
        "num_cpus": config.resources.cpus_per_scorer,
        "num_gpus": config.resources.gpus_per_scorer,
    }
    if selector:
        options["label_selector"] = dict(selector)
    deployment = serve.deployment(
        ScorerReplica,
        name="Scorer",
        num_replicas=num_replicas,
        max_ongoing_requests=16,
        # A trainer waits rather than being turned away.
        max_queued_requests=-1,
        ray_actor_options=options,
        health_check_timeout_s=120,
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return deployment.bind(threads, None if warm else os.getcwd(), config.model_dump_json() if warm else None)


def build_app(args: Mapping[str, Any] | None = None) -> Any:
    """Application builder for `serve run`, `serve deploy` and RayService: `saga_ray.on_ray.serve:build_app`.

    Args:
        args: `dataset`, `recipe`, `method` and `set` (a mapping of dotted keys) of the runs that will use the service.
    """
    args = dict(args or {})
    known = {"dataset", "recipe", "method", "set"}
    if unknown := sorted(set(args) - known):
        raise ValueError(f"args: unknown key '{unknown[0]}' (known: {', '.join(sorted(known))})")
    config = resolve(
        args.get("dataset", "demo"),
        recipe=args.get("recipe"),
        method=args.get("method"),
        overrides=args.get("set") or {},
    )
    return scorer_app(
        config, scorer_threads(config, None), num_replicas=config.resources.num_scorers, selector={}, warm=True
    )


@contextlib.contextmanager
def scorer_service(configs: Sequence[RunConfig], cluster: Cluster) -> Iterator[str | None]:
    """A scorer application for all of `configs` for as long as the context lasts; yields its name.

    Yields None, and starts nothing, if none of them asks the MLLM. A standing application named by SAGA_RAY_SCORER_APP
    is used and left alone.
    """
    asking = [config for config in configs if config.asks_the_mllm]
    standing = os.environ.get(APP_VARIABLE)
    if not asking or standing:
        yield standing if asking else None
        return
    config = max(asking, key=lambda c: c.resources.num_scorers)
    name = f"{_APP_PREFIX}{ray.get_runtime_context().get_job_id()}-{uuid.uuid4().hex[:12]}"
    was_running = bool(_controller())
    if was_running:
        _delete_orphans()
    try:
        if not was_running:
            serve.start(http_options={"location": "NoServer"}, logging_config={"log_level": "ERROR"})
        app = scorer_app(
            config,
            scorer_threads(config, cluster.num_cores),
            num_replicas=config.resources.num_scorers,
            selector=cluster.placement("scoring"),
            warm=False,
        )
        # The replica loads its weights while the training workers start; the first request waits for it.
        serve.run_many(
            [serve.RunTarget(app, name=name, route_prefix=None)],
            wait_for_ingress_deployment_creation=True,
            wait_for_applications_running=False,
        )
        yield name
    finally:
        # A cluster of our own ends with us, Serve included.
        _end(name, keep_serve=was_running or cluster.started)


def _delete_orphans() -> None:
    """Delete scorers whose driver was killed before it could: their replicas would keep their GPUs for ever."""
    owners = {name: match[1] for name in serve.status().applications if (match := _OWN_APP.fullmatch(name))}
    if not owners:
        return
    # The table of the GCS: `ray.util.state` would ask the dashboard, which a cluster need not have.
    alive = {job["JobID"] for job in state.jobs() if not job["IsDead"]}
    for name, job in owners.items():
        if job not in alive:
            with contextlib.suppress(TimeoutError):  # Serve goes on deleting
                serve.delete(name)


def _controller() -> Any:
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def _end(name: str, keep_serve: bool) -> None:
    if not ray.is_initialized() or not _controller():
        return
    serve.delete(name)
    # Serve itself goes too if it came with us and nobody else moved in meanwhile.
    if not keep_serve and not serve.status().applications:
        serve.shutdown()


def remote_scorer(app: str, config: RunConfig) -> RemoteScorer:
    """Scorer for one run, on an application that `scorer_service` or a RayService started."""
    return RemoteScorer(serve.get_app_handle(app), config)
