"""`ray job submit` against a head of its own, under token authentication."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.on_ray.conftest import SMALL, processes_of

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _status(address: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head started from the environment that runs the tests; address of its dashboard, and the submitter's environment."""
    folder = Path("/tmp") / f"saga-ray-test-{secrets.token_hex(4)}"  # Ray's sockets need a short path
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    port, dashboard = _free_port(), _free_port()
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1", "--num-cpus=4", "--object-store-memory=150000000", f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={_free_port()}", "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("head") / "head.log"
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=env, stdout=sink, stderr=sink, cwd=ROOT)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while _status(address) == 0:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address, env
    finally:
        process.terminate()
        process.wait(timeout=180)  # Ray ends its processes one by one
    assert not processes_of(str(folder))


def test_a_submitted_job_trains_on_the_cluster_and_leaves_nothing(
    head: tuple[str, dict[str, str]], mllm_folder: Path, tmp_path: Path
) -> None:
    address, env = head
    values = {key: value for key, value in SMALL.items() if key != "optim.steps"} | {"mllm.path": str(mllm_folder)}
    sets = [item for key, value in values.items() for item in ("--set", f"{key}={json.dumps(value)}")]
    command = [
        str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--",
        "saga-ray", "train", "demo", "--steps", "2", "--runs", str(tmp_path / "runs"), "--name", "job", *sets,
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["trainer/process"] != line["scorer/process"] for line in lines)
    assert len(list((tmp_path / "runs" / "results").glob("*.json"))) == 1
    listed = subprocess.run(
        [str(BIN / "ray"), "job", "list", "--address", address], env=env, capture_output=True, text=True, timeout=120
    )
    assert re.search(r"SUCCEEDED", listed.stdout)
    ours = ("Scorer", "Serve", "Bulletin", "TrainController")
    left = [name for name in _actors(address, env["RAY_AUTH_TOKEN"]) if any(word in name for word in ours)]
    assert not left


def _actors(address: str, token: str) -> list[str]:
    """Classes of the cluster's living actors, as its dashboard tells them."""
    request = urllib.request.Request(
        f"{address}/api/v0/actors?limit=1000", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        actors = json.load(answer)["data"]["result"]["result"]
    assert actors, "the state API lists dead actors too, and a run leaves some"
    return [actor["class_name"] for actor in actors if actor["state"] != "DEAD"]


def test_a_mistake_in_a_job_is_a_sentence_in_its_log(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, env = head
    command = [
        str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(tmp_path), "--",
        "saga-ray", "train", "demo", "--set", "grpo.group_sise=4",
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1  # Ray's own; the entry command's 2 stands in the log
    assert "did you mean 'grpo.group_size'?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_nobody_gets_in_without_the_token(head: tuple[str, dict[str, str]]) -> None:
    address, _ = head
    assert _status(address) == 401
