"""A broken validation or test image ends a run before it begins."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_ray.config import RunConfig
from saga_ray.configure import resolve, with_override
from saga_ray.data import load_dataset
from saga_ray.data.files.sources import FolderSource
from saga_ray.data.inspect.readable import has_files, unreadable
from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.train.local import run_local
from saga_ray.types import Dataset, ImageTable
from tests.data.trees import class_folders

SMALL = {
    "data.image_size": 32,
    "data.classes_per_batch": 2,
    "data.images_per_class": 2,
    "data.num_shards": 1,
    "data.pairs_per_batch": 2,
    "data.hard_share": 0.0,
    "evaluation.kmeans_restarts": 1,
    "optim.steps": 1,
}


class Heard:
    """Progress that remembers its stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def part(self, done: int, of: int) -> None:
        pass

    def step(self, step: int, num_steps: int, metrics: Mapping[str, Any]) -> None:
        pass

    @property
    def checked(self) -> bool:
        return any(stage.startswith("checking ") for stage in self.stages)


@pytest.fixture
def config(mllm: Path, tmp_path: Path) -> RunConfig:
    root = class_folders(tmp_path / "pictures", dict.fromkeys("abcdef", 3))
    overrides = {**SMALL, "mllm.path": str(mllm), "data.root": str(root)}
    return resolve("folder", method="potential-field", overrides=overrides)


def _damaged() -> dict[str, bytes]:
    """Files that are whole or not, in every way that a copy goes wrong."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    out = {}
    for ending, mode in (("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("gif", "P"), ("webp", "RGB"), ("bmp", "RGB")):  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, {"jpg": "JPEG"}.get(ending, ending))
        whole = buffer.getvalue()
        for cut in (len(whole), len(whole) - 2, len(whole) - 40, len(whole) // 2, 60, 3):
            out[f"{mode}-{cut}.{ending}"] = whole[:cut]
        for place in range(30, len(whole), len(whole) // 6):
            out[f"{mode}-flipped-{place}.{ending}"] = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        out[f"{mode}-hole.{ending}"] = whole[:100] + bytes(len(whole) - 100)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    out |= {f"progressive-{cut}.jpg": buffer.getvalue()[:cut] for cut in (3000, len(buffer.getvalue()))}
    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG")
    out |= {"bomb.png": buffer.getvalue(), "empty.jpg": b"", "page.jpg": b"<html>404</html>"}
    buffer = io.BytesIO()
    Image.fromarray(pixels[:20]).save(buffer, "JPEG")
    return out | {"low.jpg": buffer.getvalue()}


@pytest.mark.parametrize("cut_bottom", [0, 20])
def test_the_quick_look_finds_what_decoding_one_by_one_finds(tmp_path: Path, cut_bottom: int) -> None:
    files = _damaged()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = FolderSource(tuple(files), str(tmp_path), cut_bottom)
    expected = []
    for row in range(len(files)):
        try:
            source.load([row], 32)
        except BrokenImageError as error:
            expected.append((error.path, error.reason))
    table = ImageTable(tuple(files), np.zeros(len(files), np.int64), ("a",), source)
    seen: list[tuple[int, int]] = []
    found = unreadable([table, table], lambda done, total: seen.append((done, total)))
    assert [(error.path, error.reason) for error in found] == 2 * expected
    assert seen[-1] == (2 * len(files), 2 * len(files))
    assert 20 < len(expected) < len(files) - 20


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_broken_evaluation_image_stops_a_run_before_anything_is_written(
    config: RunConfig, tmp_path: Path, split: str
) -> None:
    victims = [load_dataset(config).split(split).source.path(row) for row in (0, 2)]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(ValueError) as caught:
        run_local(config, tmp_path / "runs", "run")
    sentence = str(caught.value)
    assert sentence.startswith("data.root: 2 of 12 validation and test images cannot be read: ")
    assert all(f"{victim} (" in sentence for victim in victims) and "\n" not in sentence
    assert f"`saga-ray data check {config.data.root}`" in sentence
    assert not (tmp_path / "runs").exists()


def test_sound_images_are_looked_at_once_and_again_when_a_file_was_changed(config: RunConfig, tmp_path: Path) -> None:
    def heard(seed: int) -> bool:
        progress = Heard()
        run_local(with_override(config, "seed", seed), tmp_path / "runs", f"run-{seed}", progress)
        return progress.checked

    assert heard(0)
    assert not heard(1)
    # The fingerprint of a large tree would not see it.
    victim = load_dataset(config).test.source.path(0)
    os.utime(victim, ns=(1, 1))
    assert heard(2)
    [note] = (tmp_path / "runs" / "checked").iterdir()
    note.write_text("{")
    assert heard(3)
    assert json.loads(note.read_text())["images"] == 12


def test_it_can_be_left_out_and_changes_no_number(config: RunConfig, tmp_path: Path) -> None:
    from saga_ray.train.evaluate import config_hash
    from saga_ray.train.run_folder import changed_values

    without = with_override(config, "evaluation.check_images", False)
    assert config_hash(without) == config_hash(config) and not changed_values(config, without)
    progress = Heard()
    run_local(without, tmp_path / "runs", "run", progress)
    assert not progress.checked and not (tmp_path / "runs" / "checked").exists()


def test_drawn_pictures_are_not_looked_at(dataset: Dataset) -> None:
    assert not has_files(dataset.test)
