"""The frozen MLLM as a Ray Serve application, and for as long as one command lasts; `standing` keeps one for many runs."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray._private import state
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.mllm.vocabulary import own_words
from saga_ray.on_ray.cluster import Cluster, hush
from saga_ray.on_ray.remote import remote_scorer
from saga_ray.on_ray.replica import AT_WORK, ScorerReplica
from saga_ray.on_ray.resources import scorer_threads

hush()  # Serve set a level of its own when it was imported

APP_VARIABLE = "SAGA_RAY_SCORER_APP"
"""Name of a standing scorer application (`cluster/kuberay-rayservice.yaml`) to use in place of an own one."""

_APP_PREFIX = "saga-ray-scorer-"
_OWN_APP = re.compile(rf"{_APP_PREFIX}([0-9a-f]+)-[0-9a-f]{{12}}")
"""Name of an application of ours: the Ray job of the driver that ends it, and a number."""
_WAITING = 256
"""Requests of one trainer that may wait for a replica. It has far fewer under way; one that is turned away asks again."""


def scorer_app(
    config: RunConfig,
    threads: int,
    *,
    selector: Mapping[str, str],
    warm: bool,
    standing: bool = False,
    replica: type = ScorerReplica,
    **options: Any,
) -> Any:
    """The Serve application: processes that hold the MLLM of `config`.

    Args:
        selector: labels of the nodes that it wants.
        warm: load the weights before the first request.
        standing: as for `ScorerReplica`; implies `warm`.
        replica: the class that answers.
        options: of the deployment, in place of ours.
    """
    settings, r = config.scorer, config.resources
    actor: dict[str, Any] = {"num_cpus": r.cpus_per_scorer, "num_gpus": r.gpus_per_scorer}
    if selector:
        actor["label_selector"] = dict(selector)
    deployment = serve.deployment(
        replica,
        name="Scorer",
        **{
            "max_ongoing_requests": AT_WORK,
            "max_queued_requests": _WAITING,
            "ray_actor_options": actor,
            "health_check_period_s": 5,
            # The event loop only hands on; a process that does not answer for so long has stopped.
            "health_check_timeout_s": min(60.0, max(1.0, settings.timeout_s)),
            "graceful_shutdown_timeout_s": 2,
            "graceful_shutdown_wait_loop_s": 0.2,
            **(_replicas(config) if "autoscaling_config" not in options else {}),
            **options,
        },
    )
    if not (warm or standing):
        return deployment.bind(threads)
    return deployment.bind(threads, os.getcwd(), config.model_dump_json(), standing, own_words(config))


def _replicas(config: RunConfig) -> dict[str, Any]:
    r = config.resources
    if r.most_scorers == r.num_scorers:
        return {"num_replicas": r.num_scorers}
    return {"autoscaling_config": autoscaling(config)}


def autoscaling(config: RunConfig, **options: Any) -> AutoscalingConfig:
    """Replicas by the tokens that wait, from `resources.num_scorers` to `resources.max_scorers`."""
    policy = AutoscalingPolicy(
        policy_function="saga_ray.on_ray.autoscale:TokenPolicy",
        policy_kwargs={"tokens_per_replica": config.scorer.tokens_per_request},
    )
    bounds = {"min_replicas": config.resources.num_scorers, "max_replicas": config.resources.most_scorers}
    return AutoscalingConfig(**bounds, policy=policy, **options)


def serving_config(
    dataset: str = "demo",
    *,
    recipe: str | None = None,
    method: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """A configuration to serve, as a run would have it; no image is read, so `data.root` may be missing.

    Raises:
        ConfigError: every mistake at once.
    """
    overrides = {"data.root": "(not read by a scorer)", **(overrides or {})}
    return resolve(dataset, recipe=recipe, method=method, overrides=overrides)


def build_app(args: Mapping[str, Any] | None = None) -> Any:
    """Application builder for `serve run`, `serve deploy` and RayService: `saga_ray.on_ray.serve:build_app`.

    Args:
        args: `dataset`, `recipe`, `method` and `set` (a mapping of dotted keys) of the runs that will use the service.
    """
    args = dict(args or {})
    known = {"dataset", "recipe", "method", "set"}
    if unknown := sorted(set(args) - known):
        raise ValueError(f"args: unknown key '{unknown[0]}' (known: {', '.join(sorted(known))})")
    config = serving_config(
        args.get("dataset", "demo"),
        recipe=args.get("recipe"),
        method=args.get("method"),
        overrides=args.get("set"),
    )
    return scorer_app(config, scorer_threads(config, None), selector={}, warm=True, standing=True)


@contextlib.contextmanager
def scorer_service(configs: Sequence[RunConfig], cluster: Cluster) -> Iterator[str | None]:
    """A scorer application for those of `configs` that name no service, for as long as the context lasts; yields its name.

    Yields None, and starts nothing, if none of them needs one. A standing application named by SAGA_RAY_SCORER_APP
    is used and left alone, as are those that `scorer.service` names.

    Raises:
        ValueError: if a service that is named does not run.
    """
    asking = [config for config in configs if config.asks_the_mllm]
    for config in asking:
        if config.scorer.service is not None:
            remote_scorer(config.scorer.service, config)  # refuses a name that nobody answers to
    own = [config for config in asking if config.scorer.service is None]
    standing = os.environ.get(APP_VARIABLE)
    if not own or standing:
        yield standing if own else None
        return
    config = max(own, key=lambda c: c.resources.num_scorers)
    name = f"{_APP_PREFIX}{ray.get_runtime_context().get_job_id()}-{uuid.uuid4().hex[:12]}"
    was_running = serve_is_running()
    if was_running:
        _delete_orphans()
    try:
        # The replica loads its weights while the training workers start; the first request waits for it.
        deploy(config, cluster, name, warm=False)
        yield name
    finally:
        # A cluster of our own ends with us, Serve included.
        end_app(name, keep_serve=was_running or cluster.started)


def alive_jobs() -> set[str]:
    """Ray jobs whose drivers are alive."""
    # The table of the GCS: `ray.util.state` would ask the dashboard, which a cluster need not have.
    return {job["JobID"] for job in state.jobs() if not job["IsDead"]}


def deploy(config: RunConfig, cluster: Cluster, name: str, *, warm: bool, standing: bool = False) -> None:
    """Hand an application to Serve, which starts its replicas; `warm` and `standing` as for `scorer_app`."""
    if not serve_is_running():
        serve.start(http_options={"location": "NoServer"}, logging_config={"log_level": "ERROR"})
    app = scorer_app(
        config,
        scorer_threads(config, cluster.num_cores),
        selector=cluster.placement("scoring"),
        warm=warm,
        standing=standing,
    )
    serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=None)],
        wait_for_ingress_deployment_creation=True,
        wait_for_applications_running=False,
    )


def _delete_orphans() -> None:
    """Delete scorers whose driver was killed before it could: their replicas would keep their GPUs for ever."""
    owners = {name: match[1] for name in serve.status().applications if (match := _OWN_APP.fullmatch(name))}
    if not owners:
        return
    alive = alive_jobs()
    for name, job in owners.items():
        if job not in alive:
            with contextlib.suppress(TimeoutError):  # Serve goes on deleting
                serve.delete(name)


def serve_is_running() -> bool:
    """True if somebody has started Ray Serve on the cluster."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def end_app(name: str, keep_serve: bool) -> None:
    """Delete an application, if the cluster is still there."""
    if not ray.is_initialized() or not serve_is_running():
        return
    serve.delete(name)
    # Serve itself goes too if it came with us and nobody else moved in meanwhile.
    if not keep_serve and not serve.status().applications:
        serve.shutdown()
