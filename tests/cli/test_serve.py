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

from saga_ray.cli.serve import joining
from saga_ray.cli.terminal import shell_quoted
from saga_ray.configure import from_yaml
from saga_ray.on_ray.serve import serving_config
from saga_ray.scorer.identity import check_identity, expected_identity
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


def test_a_run_that_is_typed_as_printed_means_what_is_served(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, prompt and all settings of scoring, with paths that were typed relative to another folder."""
    (small_mllm_folder(tmp_path / "here" / "my mllm", seed=0) / "saga_prompt.yaml").unlink()
    monkeypatch.chdir(tmp_path / "here")
    words = "role: botanist\nitem: leaf\nverdict_key: same\nattributes: {edge: [smooth, toothed]}\n"
    Path("leaves.yaml").write_text(words)
    overrides = {
        "mllm.path": "my mllm", "prompt.vocabulary": "leaves.yaml", "prompt.answers": "template", "grpo.max_new_tokens": 40,
        "scorer.deterministic": True, "optim.lr_tower": 1e-05, "data.num_classes": [8, 4, 4], "resources.num_scorers": 2,
    }  # fmt: skip
    for dataset, recipe in (("demo", None), ("cars", "demo")):
        served = serving_config(dataset, recipe=recipe, overrides=overrides)
        identity = expected_identity(served)
        saga, train, *typed = shlex.split(shell_quoted(*joining("mine", dataset, recipe, overrides)))
        assert (saga, train) == ("saga-ray", "train")
        (tmp_path / "there").mkdir(exist_ok=True)
        with monkeypatch.context() as moved:
            moved.chdir(tmp_path / "there")
            said = type_("config", "show", *typed)
            assert said.code == 0, said.err
            joins = from_yaml(said.out, "printed")
            check_identity({**identity, "dtype": "float32"}, joins, "mine")
        assert joins.scorer.service == "mine" and joins.dataset == dataset
        assert joins.resources.num_scorers == 1, "it starts none"
        for group in ("grpo", "alignment", "optim"):
            assert getattr(joins, group) == getattr(served, group), group
        assert joins.data.num_classes == served.data.num_classes and joins.scorer.deterministic


@pytest.mark.slow
def test_a_service_is_started_joined_and_stopped_from_three_shells(tmp_path: Path) -> None:
    small_mllm_folder(tmp_path / "mllm", seed=0)
    env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ID")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    saga = (sys.executable, "-m", "saga_ray.cli.main")
    small = ("--mllm", "mllm", "--set", "scorer.deterministic=true", "grpo.group_size=4", "grpo.max_new_tokens=40")
    tiny = ("data.image_size=32", "data.num_classes=[8,4,4]", "data.num_images=[6,4,4]", "data.classes_per_batch=4")
    tiny += ("data.images_per_class=2", "data.num_shards=2", "data.pairs_per_batch=4", "data.hard_share=0")
    tiny += ("optim.steps=2", "resources.cpus_per_worker=0.2", "resources.cpus_per_data_task=0.1")
    with (tmp_path / "said").open("w") as err:
        server = subprocess.Popen(
            [*saga, "serve", "--name", "mine", *small, *tiny], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True
        )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.match(r"RAY_ADDRESS=(\S+) (saga-ray .*)$", line)
        assert found, (tmp_path / "said").read_text()
        joined = env | {"RAY_ADDRESS": found[1]}
        words = shlex.split(found[2])[1:]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        run = subprocess.run(
            [*saga, *words], env=joined, cwd=elsewhere, capture_output=True, text=True, timeout=400
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert server.poll() is None, "a run that joined leaves it running"
        stop = [*saga, "serve", "--stop", "mine"]
        assert subprocess.run(stop, env=joined, cwd=tmp_path, timeout=200).returncode == 0
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
