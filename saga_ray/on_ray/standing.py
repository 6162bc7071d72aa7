"""A frozen MLLM that stays on a cluster for many runs: its start, its end, and who waits for either."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import ray
from ray import serve
from ray._private import state
from ray.serve.schema import ApplicationStatusOverview

from saga_ray.config import ResourcesConfig, RunConfig
from saga_ray.on_ray.cluster import Cluster
from saga_ray.on_ray.remote import is_there
from saga_ray.on_ray.serve import alive_jobs, deploy, end_app, serve_is_running

logger = logging.getLogger(__name__)

SERVICE_NAME = "saga-ray-scorer"
"""Name of a standing service unless another is given."""

_LOOK_EVERY_S = 1.0
_SAY_AFTER_S = 15.0
"""Seconds after which a service that has no room yet says so."""
_LEAVE_WITHIN_S = 30.0


def start_service(config: RunConfig, cluster: Cluster, name: str, say: Callable[[str], None] = logger.warning) -> None:
    """Start a standing service and wait until its weights are loaded; it stays until `stop_service`.

    It waits as long as it takes for room on the cluster. Nothing is left of it if this does not end well, Ctrl-C included.

    Args:
        say: is told once if it has to wait, and what for.

    Raises:
        ValueError: if one of this name runs, or it cannot be started.
    """
    if serve_is_running() and is_there(name):
        raise ValueError(
            f"--name {name}: a service of this name runs; end it with `saga-ray serve --stop {name}` first"
        )
    try:
        deploy(config, cluster, name, warm=True, standing=True)
        _wait_until_ready(config, name, say)
    except BaseException as error:
        with contextlib.suppress(TimeoutError):  # Serve goes on deleting
            end_app(name, keep_serve=False)
        if not isinstance(error, RuntimeError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ValueError(
            f"--name {name}: the service did not start ({reason}); see Ray's logs of its replica"
        ) from error


def _wait_until_ready(config: RunConfig, name: str, say: Callable[[str], None]) -> None:
    """Until every replica has loaded its weights.

    Raises:
        RuntimeError: if one cannot, or the service is taken away.
    """
    since: dict[str, float] = {}
    told = False
    while True:
        found = serve.status().applications.get(name)
        if found is None or found.status in ("DEPLOY_FAILED", "DELETING"):
            raise RuntimeError("it was taken away" if found is None else _reason(found))
        if found.status == "RUNNING":
            return
        now = time.monotonic()
        since = {actor: since.get(actor, now) for actor in _without_a_place(name)}
        if not told and any(now - began > _SAY_AFTER_S for began in since.values()):
            say(_what_for(config.resources, len(since)))
            told = True
        time.sleep(0.2)


def _reason(found: ApplicationStatusOverview) -> str:
    """What Serve says of an application that failed; its deployment knows more than the application."""
    said = [deployment.message for deployment in found.deployments.values()]
    return next((message for message in (*said, found.message) if message.strip()), found.status)


def _without_a_place(name: str) -> list[str]:
    """Replicas of an application that Ray has not started on a node yet."""
    waiting = state.actors(actor_state_name="PENDING_CREATION")
    return [key for key, actor in waiting.items() if actor["Name"].startswith(f"SERVE_REPLICA::{name}#")]


def _what_for(resources: ResourcesConfig, num: int) -> str:
    free = ray.available_resources()
    return (
        f"waiting for room: {num} of {resources.num_scorers} replicas have no place yet; each takes "
        f"{resources.cpus_per_scorer:g} CPUs (resources.cpus_per_scorer) and {resources.gpus_per_scorer:g} GPUs "
        f"(resources.gpus_per_scorer) of one node, and the whole cluster has {free.get('CPU', 0):g} CPUs and "
        f"{free.get('GPU', 0):g} GPUs free"
    )


def stop_service(name: str) -> None:
    """End a standing service; runs that still ask it stop at their last checkpoints.

    Raises:
        ValueError: if there is none of this name.
    """
    running = sorted(serve.status().applications) if serve_is_running() else []
    if name not in running:
        raise ValueError(f"--stop {name}: no service of this name runs here (running: {', '.join(running) or 'none'})")
    end_app(name, keep_serve=False)


def wait_until_stopped(name: str) -> None:
    """Stand by a service on a cluster of one's own until somebody has stopped it, and has left the cluster too."""
    before = alive_jobs()
    while is_there(name):
        time.sleep(_LOOK_EVERY_S)
    latest = time.monotonic() + _LEAVE_WITHIN_S
    # Who stops it is still tidying up; without a cluster it would fail at that.
    while alive_jobs() - before and time.monotonic() < latest:
        time.sleep(_LOOK_EVERY_S)
