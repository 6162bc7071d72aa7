"""Towers of further families: the library's own tower and projector, trainable, without the language model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from saga_ray.encoder.base import Tower, as_patches, check_equal, check_multiple
from saga_ray.encoder.mllm_files import config_json, pixel_statistics, vision_weights
from saga_ray.model_folder import model_folder
from saga_ray.types import VisualTokens

PATCHED = ("qwen2_vl", "qwen2_5_vl", "glm4v")
SHUFFLED = ("smolvlm", "idefics3")
FIXED = ("llava", "llava_onevision", "gemma3")
LIBRARY_FAMILIES = (*PATCHED, "internvl", *SHUFFLED, *FIXED)
_PARTS = ("visual", "vision_tower", "multi_modal_projector", "vision_model", "connector")
_NO_LANGUAGE = {"num_hidden_layers": 0, "layer_types": [], "vocab_size": 8}
"""A language model of no layers: its width alone matters to a projector."""


class LibraryTower(Tower):
    """Images to the visual tokens that the family's own `get_image_features` makes of one crop; one level.

    Neither dropout nor any other difference between training and evaluation: a replay must see the same network.
    """

    kind = "library"

    def __init__(self, config: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(mean, std)
        with _quiet():
            self.config = _without_language(config)
            self.shell = _shell(self.config)
        self.settings = {"config": self.config.to_dict(), "image_mean": list(mean), "image_std": list(std)}
        self.shell.eval()

    @classmethod
    def from_mllm_folder(
        cls, path: str | None, revision: str | None = None, dtype: torch.dtype = torch.float32
    ) -> LibraryTower:
        """Tower and projector of an MLLM folder or hub id, with their weights; nothing else of it is read.

        Raises:
            ValueError: if the folder is missing, damaged, or lacks weights.
        """
        folder = model_folder(path, revision)
        tower = cls(config_json(folder), *pixel_statistics(folder))
        _load(tower.shell, vision_weights(folder, whole_names=True), f"mllm.path: {folder.name}")
        return tower.to(dtype)

    @property
    def width(self) -> int:
        return self.config.get_text_config().hidden_size

    @property
    def backbone(self) -> str:
        vision = self.config.vision_config
        depth = getattr(vision, "depth", None) or vision.num_hidden_layers
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        return f"{self.config.model_type.replace('_', '-')}-vision-{depth}x{width}"

    def train(self, mode: bool = True) -> LibraryTower:
        super().train(mode)
        self.shell.eval()
        return self

    def check_size(self, size: int) -> None:
        grid_of(self.config, size)

    def forward(self, images_NHWC: Tensor) -> VisualTokens:
        _, height, width, _ = images_NHWC.shape
        pixels_NCHW = self.normalised(images_NHWC.to(self.mean_C.device)).to(self.dtype)
        if height != width:
            raise ValueError(f"images: {height} x {width}; this tower reads squares, resize them first")
        self.check_size(height)
        tokens_NTD = self._features(pixels_NCHW)
        side = math.isqrt(tokens_NTD.shape[1])
        return VisualTokens(tokens_NTD[:, None], (side, side))

    def _features(self, pixels_NCHW: Tensor) -> Tensor:
        family, num = self.config.model_type, len(pixels_NCHW)
        if family in PATCHED:
            vision = self.config.vision_config
            patches, grid = as_patches(
                pixels_NCHW, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
            )
            grids = torch.tensor([[1, *grid]] * num, device=patches.device)
            return self.shell.visual(patches, grid_thw=grids).pooler_output.view(num, -1, self.width)
        if family in SHUFFLED:
            # Not by get_image_features, which drops an image whose pixels are all 0 as padding.
            hidden = self.shell.vision_model(pixel_values=pixels_NCHW).last_hidden_state
            return self.shell.connector(hidden)
        more: dict[str, Any] = {}
        if family == "llava_onevision":
            sizes = torch.tensor([pixels_NCHW.shape[2:]] * num)
            # As in a prompt of several images: one crop each.
            more = {"image_sizes": sizes, "batch_num_images": torch.tensor([max(num, 2)])}
        found = self.shell.get_image_features(pixel_values=pixels_NCHW, return_dict=True, **more).pooler_output
        return found if isinstance(found, Tensor) else torch.stack(list(found))


def grid_of(config: PreTrainedConfig, size: int) -> tuple[int, int]:
    """Rows and columns of the tokens that a family's tower makes of images of this side.

    Raises:
        ValueError: for a side that it cannot read.
    """
    vision, family = config.vision_config, config.model_type
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    if family in FIXED:
        check_equal(size, vision.image_size)
        side = math.isqrt(config.mm_tokens_per_image) if family == "gemma3" else size // patch
        return side, side
    if family in PATCHED:
        step = patch * vision.spatial_merge_size
    elif family in SHUFFLED:
        step = patch * config.scale_factor
    else:
        step = patch * round(1 / config.downsample_ratio)
    check_multiple(size, step)
    return size // step, size // step


def _without_language(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The family's config with a language model of no layers."""
    whole = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "auto_map"})
    text = whole.get_text_config()
    ids = {key: 0 for key in ("pad_token_id", "bos_token_id", "eos_token_id") if getattr(text, key, None) is not None}
    values = whole.to_dict()
    values["text_config"] = text.to_dict() | _NO_LANGUAGE | ids
    return AutoConfig.for_model(**values)


def _shell(config: PreTrainedConfig) -> PreTrainedModel:
    """The family's base model with its tower and projector alone."""
    shell = AutoModel.from_config(config)
    for name in [name for name, _ in shell.named_children() if name not in _PARTS]:
        setattr(shell, name, nn.Identity())
    if "image_newline" in shell._parameters:
        # It stands behind an image in the prompt, as a frozen row of the MLLM's own.
        del shell._parameters["image_newline"]
        shell.image_newline = None
    return shell


def _load(shell: PreTrainedModel, weights: dict[str, Tensor], source: str) -> None:
    """Weights by their names in the checkpoint; the library knows how these were renamed over the years."""
    with _quiet():
        loaded, report = type(shell).from_pretrained(
            None, config=shell.config, state_dict=weights, output_loading_info=True, dtype=torch.float32
        )
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name.split(".")[0] in _PARTS}
    own = shell.state_dict()
    missing = sorted(name for name in report["missing_keys"] if name in own)
    wrong = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in sorted(report["unexpected_keys"])]
    if wrong or found.keys() != own.keys():
        raise ValueError(
            f"{source}: its vision weights do not fit its config ({', '.join(wrong[:3])}); use files of one model"
        )
    shell.load_state_dict(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library reports that there is no language model, which is meant, and draws bars."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
