"""The GPU bench, a few units wide on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saga_ray.bench import gpu
from saga_ray.bench.flops import gradient_flops, visible_pairs
from saga_ray.bench.gpu_parts import PARTS
from saga_ray.bench.gpu_step import TINY


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("gpu") / "found.json"
    report = gpu.bench(TINY, torch.device("cpu"), path, minutes=5, only=[name for name in PARTS if name != "profile"])
    assert json.loads(path.read_text()).keys() == report.keys()
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_part_measures_something(found: dict) -> None:
    assert not [name for name, part in found.items() if "error" in part and name != "error"], found
    assert found["rates"]["gemm_flops"] > 0 and found["rates"]["copy_bytes_per_s"] > 0
    for name in ("step_paper", "step_compact"):
        phases = found[name]["seconds"]
        assert found[name]["images_per_s"] == pytest.approx(6 / phases["step"])
        assert phases["step"] == pytest.approx(sum(v for k, v in phases.items() if k != "step"))
    for part in found["sampling"].values():
        assert not isinstance(part, dict) or part["share_of_bound"] > 0
    for part in found["gradient"].values():
        assert not isinstance(part, dict) or part["share_of_gemm_rate"] > 0


@pytest.mark.slow
def test_every_way_has_the_naive_gradient(found: dict) -> None:
    errors = {name: value for name, value in found["error"].items() if name != "part_s"}
    assert len(errors) == 3 and max(errors.values()) < 1e-5


def test_a_part_that_fails_is_said_and_the_next_one_runs(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "found.json", minutes=1)
    report.part("broken", lambda: 1 / 0, 1)
    report.part("long", lambda: {}, 1000)
    report.part("whole", lambda: {"a": 1}, 1)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["broken"]["error"].startswith("ZeroDivisionError")
    assert "skipped" in found["long"] and found["whole"]["a"] == 1


def test_operations_counted_one_by_one() -> None:
    assert visible_pairs(before=2, own=3, answer=2, group_size=2) == (3 + 4 + 5) + 2 * (6 + 7)
    shape = TINY.mllm
    products = sum(a * b for a, b in shape.products)
    assert shape.layer_parameters == products
    flops = gradient_flops(shape, before=2, own=3, answer=2, group_size=2)
    attention = shape.num_layers * shape.num_heads * shape.head_dim * 12.0 * 38
    assert flops == 4.0 * shape.num_layers * products * 7 + attention + 4.0 * shape.vocabulary * shape.hidden * 4
