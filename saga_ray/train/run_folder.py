"""The folder of a run: who may use its name, and what is written into it beside checkpoints."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from saga_ray import __version__
from saga_ray.config import RunConfig
from saga_ray.config.keys import flat
from saga_ray.configure import check_run_name, from_yaml, to_yaml
from saga_ray.data.files.places import without_password
from saga_ray.storage import Storage

CONFIG, ENVIRONMENT, RESULT = "config.yaml", "environment.json", "result.json"
_WITHOUT_EFFECT = (
    "resources.",
    "evaluation.check_images",
    "scorer.service",
    "scorer.timeout_s",
    "scorer.max_retries",
    "scorer.requests_in_flight",
)
"""Keys that may differ when a run is resumed: they change no number."""
_PACKAGES = (
    "ray", "torch", "torchvision", "transformers", "timm", "pytorch-metric-learning", "numpy", "scipy",
    "scikit-learn", "safetensors", "pyarrow", "pillow", "pydantic", "optuna", "tokenizers",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """`RUNS/NAME`, on any storage."""

    runs: Storage
    name: str

    @property
    def storage(self) -> Storage:
        """The run's own folder."""
        return self.runs.child(self.name)

    def state(self, config: RunConfig) -> Literal["new", "started", "finished"]:
        """What the folder holds of this run; writes nothing.

        Raises:
            ValueError: if the name is no run name, or belongs to a run of another config (changed keys are named).
        """
        check_run_name(self.name)
        try:
            text = self.storage.read(CONFIG).decode()
        except FileNotFoundError:
            return "new"
        except OSError as error:
            raise ValueError(
                f"--runs {self.runs.uri}: {self.name}/{CONFIG} cannot be read ({error}); choose another folder or --name"
            ) from None
        path = f"{self.storage.uri}/{CONFIG}"
        changed = changed_values(from_yaml(text, path), config)
        if changed:
            named = "; ".join(
                f"{key}: {without_password(str(old))} there, {without_password(str(new))} now"
                for key, (old, new) in changed.items()
            )
            raise ValueError(
                f"--name {self.name}: {self.storage.uri} holds a run with another configuration ({named}); "
                f"choose another --name, or delete that folder"
            )
        return "finished" if self.storage.exists(RESULT) else "started"

    def begin(self, config: RunConfig) -> None:
        """Claim the name: write the resolved config and the environment."""
        self.storage.write(CONFIG, to_yaml(config).encode())
        self.storage.write(ENVIRONMENT, json.dumps(environment(), indent=1, sort_keys=True).encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write what marks the run as finished."""
        self.storage.write(RESULT, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())

    def read_result(self) -> dict[str, Any]:
        """What `write_result` wrote."""
        try:
            return json.loads(self.storage.read(RESULT))
        except ValueError:
            raise ValueError(
                f"{self.storage.uri}/{RESULT}: is not readable JSON; delete this file and type the command again to "
                f"evaluate the run's last checkpoint once more"
            ) from None


def changed_values(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Keys in which two configs differ, with both values; without keys that change no number."""
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in after
        if before.get(key) != after.get(key) and not key.startswith(_WITHOUT_EFFECT)
    }


def process_name() -> str:
    """Host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def environment() -> dict[str, Any]:
    """Versions and machine, without names of users, hosts or folders."""
    import torch

    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return {
        "saga-ray": __version__,
        "git": git_revision(),
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def git_revision() -> str | None:
    """Commit of the checkout that this code runs from, with `+changes` if it is not clean; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode or status.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
