"""Whole runs with other families and towers: scored by the real MLLM, trained, measured, stored, loaded, measured again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from saga_ray import load_encoder
from saga_ray.encoder.encoder import build_encoder
from saga_ray.train.local import run_local
from saga_ray.train.remeasure import remeasure
from saga_ray.types import Dataset
from tests.helpers.small_families import small_family_folder
from tests.helpers.small_mllm import saga_prompt
from tests.train.small import small_run_config

GEMMA = ("birds:\n\n<start_of_image>", "<end_of_image>\n\nand\n\n<start_of_image>", "<end_of_image>\n\nsame?")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_family_folder(tmp_path_factory.mktemp("families") / "gemma3", "gemma3")
    prompt = saga_prompt(6) | {"templates": {"structured": list(GEMMA), "generic": list(GEMMA)}}
    (folder / "saga_prompt.yaml").write_text(yaml.safe_dump(prompt), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("family", "tower", "trainable", "backbone"),
    [
        ("gemma3", "mllm", "blocks:1", "gemma3-vision-2x32"),
        ("gemma3", "timm:test_vit", "all", "timm-test_vit"),
        ("qwen3_vl", "timm:test_vit", "norms", "timm-test_vit"),
    ],
)
def test_a_run_is_trained_through_the_mllm_and_comes_back(
    gemma: Path, mllm: Path, dataset: Dataset, tmp_path: Path, family: str, tower: str, trainable: str, backbone: str
) -> None:
    config = small_run_config(
        gemma if family == "gemma3" else mllm, "potential-field+reference-kl", encoder__tower=tower,
        encoder__trainable=trainable, optim__steps=3, optim__lr_tower=1e-3, grpo__max_new_tokens=6,
    )  # fmt: skip
    result = run_local(config, tmp_path, "run", dataset=dataset)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    divergence = [line["loss/reference_kl"] for line in lines if "loss/reference_kl" in line]
    assert len(divergence) == 3
    assert abs(divergence[0]) < 1e-9 < divergence[-1], "the tower moves, and the MLLM sees it"

    initial, trained = build_encoder(config), load_encoder(tmp_path / "run").encoder
    moved = {
        n for n, value in trained.tower.state_dict().items() if not torch.equal(value, initial.tower.state_dict()[n])
    }
    assert moved
    if trainable == "blocks:1":
        assert not any("embeddings" in name or ".layers.0." in name for name in moved)
    if trainable == "norms":
        assert all("norm" in name or "connectors" in name for name in moved)
    row = json.loads(next((tmp_path / "results").rglob("*.json")).read_text())
    assert row["backbone"] == backbone
    again = remeasure(str(tmp_path / "run"))
    assert again.agrees
    assert np.isclose(again.scores["recall@1"], result.scores["recall@1"])
