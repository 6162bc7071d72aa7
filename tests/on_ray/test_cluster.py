"""Joining, starting and ending clusters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from saga_ray.config import RunConfig
from saga_ray.on_ray import cluster as cluster_module
from tests.on_ray.conftest import processes_of

ALONE = """
import os, sys
from saga_ray.configure import resolve
from saga_ray.on_ray.cluster import connect
with connect([resolve("demo", overrides={"resources.num_workers": 4})]) as cluster:
    import ray
    assert cluster.started and cluster.total()[0] >= 5.5, cluster.total()
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    if "fail" in sys.argv:
        raise SystemExit(3)
    if "term" in sys.argv:
        os.kill(os.getpid(), 15)
        import time; time.sleep(60)
assert not ray.is_initialized()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("well", 0), ("fail", 3), ("term", 143)])
def test_a_cluster_of_our_own_is_gone_with_us(how: str, code: int) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", ALONE, how], env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == code, done.stderr[-2000:]
    session = done.stdout.strip().splitlines()[-1]
    assert session.startswith("/") and not processes_of(session)


def test_a_joined_cluster_stays(ray_cluster: None, small_config: RunConfig) -> None:
    import ray

    from saga_ray.on_ray.cluster import connect

    with connect([small_config]) as cluster:
        assert not cluster.started and cluster.num_cores is None
        assert cluster.placement("scoring") and not cluster.placement("data")
    assert ray.is_initialized() and cluster.total()[0] == 6


def test_an_address_where_nobody_answers_is_told_in_a_sentence() -> None:
    code = (
        "from saga_ray.configure import resolve\nfrom saga_ray.on_ray.cluster import connect\n"
        "try:\n    with connect([resolve('demo')]): pass\n"
        "except ValueError as error: print(error)\n"
    )
    env = os.environ | {
        "RAY_ADDRESS": "127.0.0.1:1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_gcs_rpc_server_connect_timeout_s": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("RAY_ADDRESS 127.0.0.1:1: no Ray cluster answers there"), done.stderr[-2000:]


def test_a_machine_too_busy_to_start_ray_hears_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def times_out(**kwargs: object) -> None:
        tries.append(kwargs)
        raise RuntimeError(
            "The current node timed out during startup. This could happen because some of the processes failed."
        )

    monkeypatch.setattr(cluster_module.ray, "init", times_out)
    monkeypatch.setattr(cluster_module.ray, "shutdown", lambda: None)
    with pytest.raises(ValueError, match=r"Ray did not start on this machine, 3 times in turn.*--local"):
        cluster_module._start(2)
    assert len(tries) == 3
