"""Checkpoints: safetensors and JSON with a manifest written last; a damaged one is passed over for the one before."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from saga_ray.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: named groups of tensors, and small values."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(run: Storage, checkpoint: Checkpoint, keep: int) -> None:
    """Write `checkpoints/step-<n>/`, its manifest of sha256 sums last, then remove all but the newest `keep`."""
    name = f"{FOLDER}/step-{checkpoint.step:08d}"
    run.delete(name)
    content = {
        f"{group}.safetensors": save_safetensors(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        )
        for group, tensors in checkpoint.tensors.items()
    }
    content["state.json"] = json.dumps({"step": checkpoint.step, **checkpoint.state}, sort_keys=True).encode()
    for file, data in content.items():
        run.write(f"{name}/{file}", data)
    sums = {file: hashlib.sha256(data).hexdigest() for file, data in content.items()}
    run.write(f"{name}/{MANIFEST}", json.dumps({"sha256": sums}, indent=1, sort_keys=True).encode())
    for old in _names(run)[:-keep]:
        run.delete(f"{FOLDER}/{old}")


def load_checkpoint(run: Storage) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if none was ever finished. Damaged ones are named in a warning.

    Raises:
        ValueError: if there are finished checkpoints and none is whole: to begin again is not ours to decide.
    """
    was_finished = False
    for name in reversed(_names(run)):
        try:
            return _load(run, name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            was_finished = was_finished or run.exists(f"{FOLDER}/{name}/{MANIFEST}")
            logger.warning(
                "%s/%s/%s is damaged or unfinished (%s); going back to the one before", run.uri, FOLDER, name, error
            )
    if was_finished:
        raise ValueError(
            f"{run.uri}/{FOLDER}: no checkpoint can be read, all of them are damaged; restore this folder to go on with "
            f"the run, or delete {run.uri} to begin it again"
        )
    return None


def _load(run: Storage, name: str) -> Checkpoint:
    sums = json.loads(run.read(f"{FOLDER}/{name}/{MANIFEST}"))["sha256"]
    content = {}
    for file, expected in sums.items():
        if "/" in file:
            raise ValueError(f"its manifest names {file!r}")
        content[file] = run.read(f"{FOLDER}/{name}/{file}")
        if hashlib.sha256(content[file]).hexdigest() != expected:
            raise ValueError(f"{file} differs from its sha256")
    state = json.loads(content.pop("state.json"))
    tensors = {file.removesuffix(".safetensors"): load_safetensors(data) for file, data in content.items()}
    return Checkpoint(step=state.pop("step"), tensors=tensors, state=state)


def _names(run: Storage) -> list[str]:
    return [name for name in run.list(FOLDER) if name.startswith("step-")]
