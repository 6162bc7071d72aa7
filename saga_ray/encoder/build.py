"""The tower that a run asks for, and the one that a stored encoder had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saga_ray.config import RunConfig
from saga_ray.encoder.base import Tower, check_multiple
from saga_ray.encoder.library_tower import LIBRARY_FAMILIES, LibraryTower, grid_of
from saga_ray.encoder.mllm_files import config_json, token_shape, vision_config
from saga_ray.encoder.tower import VisionTower
from saga_ray.model_folder import load_config, model_folder

DEEPSTACK_FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
"""Their towers are alike."""
TIMM = "timm:"
KINDS = ("qwen3_vl", "library", "timm")


def build_tower(config: RunConfig, dtype: torch.dtype = torch.float32) -> Tower:
    """The initial tower of a run.

    Raises:
        ValueError: for an MLLM folder, a model of timm or a weights file that cannot be used.
    """
    chosen = config.encoder.tower
    if chosen.startswith(TIMM):
        from saga_ray.encoder.timm_tower import TimmTower

        width, num_levels = token_shape(model_folder(config.mllm.path, config.mllm.revision))
        tower: Tower = TimmTower.created(
            chosen.removeprefix(TIMM), config.data.image_size, width, num_levels,
            seed=config.seed, weights=config.encoder.weights, revision=config.encoder.revision,
        )  # fmt: skip
        return tower.to(dtype)
    return mllm_tower(config.mllm.path, config.mllm.revision, dtype)


def mllm_tower(path: str | None, revision: str | None = None, dtype: torch.dtype = torch.float32) -> Tower:
    """A trainable copy of an MLLM's own tower.

    Raises:
        ValueError: if the folder is missing, damaged, or of a family without a tower of its own here.
    """
    folder = model_folder(path, revision)
    family = config_json(folder).get("model_type")
    if family in LIBRARY_FAMILIES:
        return LibraryTower.from_mllm_folder(str(folder), dtype=dtype)
    return VisionTower.from_mllm_folder(str(folder), dtype=dtype)


def token_grid(config: RunConfig) -> tuple[int, int]:
    """Rows and columns of the tokens that a run's tower makes of one image; no weights are read.

    Raises:
        ValueError: as `build_tower` and `Tower.check_size`.
    """
    chosen, size = config.encoder.tower, config.data.image_size
    folder = model_folder(config.mllm.path, config.mllm.revision)
    if chosen.startswith(TIMM):
        from saga_ray.encoder.timm_tower import TimmTower

        with torch.device("meta"), torch.no_grad():
            tower = TimmTower(chosen.removeprefix(TIMM), size, *token_shape(folder))
            tower.check_size(size)
            return tower.features(torch.zeros(1, 3, size, size))[1]
    if config_json(folder).get("model_type") in LIBRARY_FAMILIES:
        return grid_of(load_config(folder), size)
    vision = vision_config(folder)
    step = vision["patch_size"] * vision["spatial_merge_size"]
    check_multiple(size, step)
    return size // step, size // step


def tower_from_settings(settings: Mapping[str, Any]) -> Tower:
    """A tower as `encoder.json` describes it, weights not loaded.

    Raises:
        KeyError: for settings that lack a key.
    """
    values = dict(settings)
    kind = values.pop("kind")
    if kind == "timm":
        from saga_ray.encoder.timm_tower import TimmTower

        return TimmTower(values["name"], values["image_size"], values["width"], values["num_levels"])
    if kind == "library":
        return LibraryTower(values["config"], tuple(values["image_mean"]), tuple(values["image_std"]))
    return VisionTower(values["vision_config"], values["image_mean"], values["image_std"])
