"""The four benchmarks as trees of a few classes that can be trained on, raw and prepared, and runs that are cut off."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from saga_ray.config import RunConfig
from saga_ray.configure import resolve, with_override
from saga_ray.data import load_dataset
from saga_ray.data.shards.prepare import prepare
from tests.data.trees import aircraft_tree, cars_tree, cub_tree, inat_tree, picture

SMALL = {
    "data.image_size": 32,
    "data.verify_counts": False,
    "data.classes_per_batch": 4,
    "data.images_per_class": 2,
    "data.num_shards": 2,
    "data.pairs_per_batch": 4,
    "data.shift_pixels": 0.1,
    "data.crop_area": 0.5,
    "grpo.group_size": 2,
    "grpo.contributing_pairs": 2,
    "grpo.max_micro_batches": 1,
    "grpo.max_new_tokens": 40,
    "optim.steps": 4,
    "checkpoint.every_steps": 2,
    "evaluation.kmeans_restarts": 1,
    "scorer.deterministic": True,
}
"""Four steps of SAGA with mining, crops and displacements."""


def _planes(root: Path) -> None:
    """Pictures that differ; the reader's own tree is white."""
    for number, path in enumerate(sorted(aircraft_tree(root, [f"Plane {i}" for i in range(10)]).rglob("*.jpg"))):
        picture(path, number, (60, 70))


TREES: dict[str, Callable[[Path], Any]] = {
    "cub": lambda root: cub_tree(root, {number: f"Bird_{number}" for number in (1, 2, 3, 4, 5, 101, 102, 103, 104)}),
    "cars": lambda root: cars_tree(root, "devkit", [f"Car {i}" for i in range(10)]),
    "aircraft": _planes,
    "inat-aves": lambda root: inat_tree(root, [f"{i:05d}_Animalia_Chordata_Aves_O_F_G_s{i}" for i in range(10)]),
}


def raw_and_prepared(name: str, folder: Path, mllm: Path, method: str = "saga") -> tuple[RunConfig, RunConfig]:
    """Configurations of one run, from the owner's tree and from shards of it."""
    (folder / "raw").mkdir()
    TREES[name](folder / "raw")
    overrides = {**SMALL, "mllm.path": str(mllm), "data.root": str(folder / "raw")}
    raw = resolve(name, recipe="demo", method=method, overrides=overrides)
    prepare(load_dataset(raw), str(folder / "shards"), raw.data, 3, lambda done, total: None)
    return raw, with_override(raw, "data.root", str(folder / "shards"))


class Stopped(Exception):
    """The run was cut off from outside."""


class StopAfter:
    """Progress that cuts training off after a step."""

    def __init__(self, last: int) -> None:
        self._last, self._trains = last, False

    def stage(self, text: str) -> None:
        self._trains = text.startswith("training")

    def part(self, done: int, of: int) -> None:
        pass

    def step(self, step: int, num_steps: int, metrics: Mapping[str, Any]) -> None:
        if self._trains and step == self._last:
            raise Stopped


def numbers(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what may differ between two runs of equal numbers."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key and "process" not in key} for line in lines]  # fmt: skip


def same_runs(one: Path, other: Path) -> None:
    """Two finished runs agree to the last bit: every step, every weight, every neighbour, the row of the board."""
    assert numbers(one) == numbers(other) and len(numbers(one)) == SMALL["optim.steps"]
    first, second = (load_file(run / "encoder" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert (one / "per_query.parquet").read_bytes() == (other / "per_query.parquet").read_bytes()
    rows = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    for key in ("fingerprint", "config_hash", "label", "partial", "scores", "per_class"):
        assert rows[0][key] == rows[1][key], key
