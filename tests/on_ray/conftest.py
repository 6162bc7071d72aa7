"""One small cluster of two nodes for all tests on Ray: data and training on the head, scoring on the other node."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saga_ray.config import RunConfig
from saga_ray.configure import resolve

SMALL = {
    "data.image_size": 32,
    "data.classes_per_batch": 4,
    "data.images_per_class": 2,
    "data.num_shards": 2,
    "data.pairs_per_batch": 4,
    "data.hard_share": 0.0,
    "data.num_classes": [8, 4, 4],
    "data.num_images": [6, 4, 4],
    "grpo.group_size": 4,
    "grpo.contributing_pairs": 4,
    "grpo.max_micro_batches": 2,
    "grpo.refill": True,
    "grpo.max_new_tokens": 40,
    "optim.steps": 3,
    "checkpoint.every_steps": 2,
    "scorer.deterministic": True,
    "evaluation.kmeans_restarts": 1,
    "resources.cpus_per_worker": 0.5,
}


@pytest.fixture(scope="session")
def mllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.helpers.small_mllm import small_mllm_folder

    return small_mllm_folder(tmp_path_factory.mktemp("mllm") / "small", seed=0)


@pytest.fixture(scope="session")
def small_config(mllm_folder: Path) -> RunConfig:
    """A SAGA run of a few seconds."""
    return resolve("demo", overrides={**SMALL, "mllm.path": str(mllm_folder)})


@pytest.fixture(scope="session")
def ray_cluster(ray_nodes: Any) -> None:
    """Two nodes on this machine, labelled as `cluster/*.yaml` label theirs; this process is connected to them."""


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Any]:
    """The same as a `ray.cluster_utils.Cluster`, to add nodes and to take them away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        for name, value in {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
            "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
        }.items():
            patch.setenv(name, value)
        import ray
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray.cluster_utils import Cluster

        from saga_ray.on_ray.resources import GROUP_LABEL

        # Ray reads RAY_AUTH_MODE when it is imported, which has happened already; this makes it look again.
        assert maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        store = 150 * 1024 * 1024
        head = {
            "num_cpus": 4,
            "labels": {GROUP_LABEL: "training"},
            "object_store_memory": store,
            "include_dashboard": True,
            # Cluster would insist on Ray's usual port, which another cluster on this machine may have.
            "dashboard_port": free_port(),
        }
        cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            _patiently(lambda: cluster.add_node(num_cpus=2, labels={GROUP_LABEL: "scoring"}, object_store_memory=store))
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to start, which a busy machine can miss; there is no setting for it."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


def processes_of(session: str) -> list[str]:
    """Commands of processes that name a folder of Ray's."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if entry.name.isdigit() and session in command:
            found.append(command[:80])
    return found
