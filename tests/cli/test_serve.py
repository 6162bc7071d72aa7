"""`saga-ray serve`: what is refused before Ray starts, and the whole way from the first shell to the last."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome
from tests.helpers.small_mllm import small_mllm_folder

Type = Callable[..., Outcome]


def test_what_cannot_be_served_is_refused_before_ray_starts(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for words, sentence in (
        (("--mllm", "/nowhere/at-all"), r"mllm\.path: /nowhere/at-all does not exist"),
        (("--name", "../x"), r"--name \.\./x: use small letters, digits and hyphens"),
        (("--stop", "some"), r"--stop some: on which cluster is not said; set RAY_ADDRESS"),
        (("--set", "scorer.service=A B"), r"scorer\.service"),
        (("--set", "grpo.group_size=1"), r"grpo\.group_size"),
        (("--dataset", "moon"), r"moon"),
    ):
        said = type_("serve", *words)
        assert said.code == 2 and re.search(sentence, said.err), (words, said.err)
        assert "Traceback" not in said.err and not said.out


@pytest.mark.slow
def test_a_service_is_started_joined_and_stopped_from_three_shells(tmp_path: Path) -> None:
    folder = small_mllm_folder(tmp_path / "mllm", seed=0)
    env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ID")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    saga = (sys.executable, "-m", "saga_ray.cli.main")
    small = ("--set", "scorer.deterministic=true", f"mllm.path={folder}", "grpo.group_size=4", "grpo.max_new_tokens=40")
    tiny = ("data.image_size=32", "data.num_classes=[8,4,4]", "data.num_images=[6,4,4]", "data.classes_per_batch=4")
    tiny += ("data.images_per_class=2", "data.num_shards=2", "data.pairs_per_batch=4", "data.hard_share=0")
    with (tmp_path / "said").open("w") as err:
        server = subprocess.Popen(
            [*saga, "serve", "--name", "mine", *small], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True
        )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.match(r"RAY_ADDRESS=(\S+) (saga-ray .*)$", line)
        assert found, (tmp_path / "said").read_text()
        joining = env | {"RAY_ADDRESS": found[1]}
        words = shlex.split(found[2])[1:]
        assert words == ["train", "demo", "--set", "scorer.service=mine"]
        run = subprocess.run(
            [*saga, *words, *small[1:], *tiny, "resources.cpus_per_worker=0.2", "resources.cpus_per_data_task=0.1", "--steps", "2"],
            env=joining, cwd=tmp_path, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert server.poll() is None, "a run that joined leaves it running"
        stop = [*saga, "serve", "--stop", "mine"]
        assert subprocess.run(stop, env=joining, cwd=tmp_path, timeout=200).returncode == 0
        for _ in range(600):
            if server.poll() is not None:
                break
            time.sleep(0.1)
        assert server.returncode == 0
        assert "mine was stopped" in (tmp_path / "said").read_text()
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
