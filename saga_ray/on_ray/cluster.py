"""Joins the cluster that is there, or starts one on this machine; ends only what it started."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

import ray

from saga_ray.config import RunConfig
from saga_ray.machine import num_cpus
from saga_ray.on_ray.resources import Bundle, check_feasible, check_fits, logical_cpus, placement

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Train asks its workers this often whether they are done; its own 2 s would be felt at every short run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Workers stay where the driver is, so that paths mean the same in both.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
_QUIET_ALONE = {
    # Ray would put its workers behind every other process of the machine (nice 15), and so far behind their own driver.
    "RAY_worker_niceness": "0",
    # Nobody takes nodes away from a machine of our own; each of these would be one more process to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
}


@dataclass(frozen=True)
class Cluster:
    """The cluster this process is connected to."""

    started: bool
    """True if it is ours alone, on this machine."""
    num_cores: int | None
    """Cores of this machine if the cluster is ours alone, else None."""

    def placement(self, group: str) -> dict[str, str]:
        """Label selector that brings `data`, `training` or `scoring` to its nodes, if there are such."""
        return placement(group, [node.get("Labels", {}) for node in ray.nodes() if node["Alive"]])

    @property
    def address(self) -> str:
        """For RAY_ADDRESS of another process that joins."""
        return ray.get_runtime_context().gcs_address

    def total(self) -> tuple[float, float]:
        """CPUs and GPUs that the cluster has now."""
        have = ray.cluster_resources()
        return have.get("CPU", 0.0), have.get("GPU", 0.0)


@contextlib.contextmanager
def connect(configs: Sequence[RunConfig], *, concurrent: int = 1) -> Iterator[Cluster]:
    """Be connected to a cluster that can run `configs`, `concurrent` of them at once.

    Inside a submitted job, or where RAY_ADDRESS is set, that cluster is joined; a process that is already connected
    stays so; otherwise a cluster of this machine is started, and ended with the context.

    Raises:
        ValueError: if a joined cluster can never place what is asked, or does not answer.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    hush()
    with _connection(configs, concurrent) as cluster:
        _check(configs, concurrent)
        # A job that is stopped gets SIGTERM; unwinding lets the scorer service go with it. Ray puts a handler of its own
        # in place while it starts, so ours comes after.
        with _interrupted_by_sigterm():
            yield cluster


@contextlib.contextmanager
def _connection(configs: Sequence[RunConfig], concurrent: int) -> Iterator[Cluster]:
    if ray.is_initialized():
        yield Cluster(started=False, num_cores=None)
        return
    joins = bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
    num_cores = None if joins else num_cpus()
    if num_cores is None:
        _join()
    else:
        for name, value in _QUIET_ALONE.items():
            os.environ.setdefault(name, value)
        _start(logical_cpus(configs, concurrent, num_cores))
    try:
        yield Cluster(started=not joins, num_cores=num_cores)
    finally:
        ray.shutdown()


def _start(cpus: int, attempts: int = 3) -> None:
    for attempt in range(1, attempts + 1):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                # Train's cleaner of placement groups asks the dashboard; without one it complains every second.
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.CRITICAL,  # what Ray says of a start that failed is in the error as well
            )
            logging.getLogger("ray").setLevel(logging.ERROR)
            return
        except Exception as error:
            # Ray gives a node 30 s to start, which a busy laptop can miss; there is no setting for it.
            if not ("timed out during startup" in str(error) or "dashboard.log" in str(error)):
                raise
            ray.shutdown()
            if attempt == attempts:
                raise ValueError(
                    f"Ray did not start on this machine, {attempts} times in turn; it gives itself 30 s, which a busy machine can "
                    f"miss: try again when less runs here (training and studies need no Ray with --local)"
                ) from None


def _join() -> None:
    # A client with an address does not look for a token by itself: it would be refused for ever.
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', '(of this job)')}: no Ray cluster answers there ({reason}); start it, "
            f"correct the address, or unset RAY_ADDRESS to run on this machine"
        ) from None


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _check(configs: Sequence[RunConfig], concurrent: int) -> None:
    if not _autoscales():
        check_feasible(configs, _nodes(), "the Ray cluster", concurrent)


def check_placeable(asked: Sequence[Bundle]) -> None:
    """Refuse a piece that the joined cluster can never hold.

    Raises:
        ValueError: as `resources.check_fits`.
    """
    if not _autoscales():
        check_fits(asked, _nodes(), "the Ray cluster")


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _autoscales() -> bool:
    """True where nodes may still come, so that what is there now says nothing."""
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return bool(os.environ.get("SAGA_RAY_NODE_GROUPS")) or any(
        group.max_count == -1 or group.max_count > group.min_count for group in groups
    )


def hush() -> None:
    """Our own progress lines stand alone; what goes wrong comes back as an exception."""
    for name in ("ray", "ray.serve", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
