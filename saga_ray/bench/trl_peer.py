"""The other end of `bench.trl_worker`: a process in TRL's environment that waits for its turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from saga_ray.bench.scorer_work import Work, save_for_others
from saga_ray.bench.work_shapes import prompt_texts

ENVIRONMENT = ".venv-bench"
_MARKS = ("<|vision_start|>", "<|vision_end|>")


class NoPeer(Exception):
    """Why TRL takes no part."""


@contextlib.contextmanager
def trl_peer(
    work: Work, vocabulary: int, python: Path
) -> Iterator[tuple[Callable[[], dict[str, float]], dict[str, str]]]:
    """A function that runs one step of TRL's on the same weights and sizes, and the versions that it runs on.

    Raises:
        NoPeer: if there is no such environment, or its process ends.
    """
    if not python.is_file():
        raise NoPeer(f"{python} is not there; make it with `make bench-setup`")
    with tempfile.TemporaryDirectory(prefix="saga-ray-trl-") as folder:
        save_for_others(work, Path(folder))
        command = [str(python), "-m", "saga_ray.bench.trl_worker", "--folder", folder]
        command += ["--threads", str(torch.get_num_threads()), "--work", json.dumps(_told(work, vocabulary))]
        source = str(Path(__file__).parents[2])
        environment = os.environ | {
            "PYTHONPATH": source,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        log = Path(folder, "log")
        with log.open("w") as errors, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:  # fmt: skip
            try:
                yield (lambda: _turn(process, log)), _answer(process, log)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.terminate()


def _told(work: Work, vocabulary: int) -> dict[str, Any]:
    texts = []
    for text in prompt_texts(work.shape, vocabulary):
        for mark in _MARKS:  # the chat template writes them
            text = text.replace(mark, "")
        texts.append(text)
    banned = torch.isinf(work.mllm.bias_V).nonzero()[:, 0].tolist()
    return dataclasses.asdict(work.shape) | {"texts": texts, "prompt": work.shape.prompt, "banned": banned}


def _turn(process: subprocess.Popen[str], log: Path) -> dict[str, float]:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("step\n")
        process.stdin.flush()
    return _answer(process, log)


def _answer(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        last = [text for text in log.read_text().splitlines() if text.strip()][-1:]
        raise NoPeer(f"TRL's process ended: {(last or ['it said nothing'])[0][:300]}")
    return json.loads(line)
