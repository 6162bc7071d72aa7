"""Vision tower: a trainable copy of Qwen3-VL's own, from uint8 images to all tensors that enter the language model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    rotate_half,
)
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from saga_ray.encoder.base import Tower, as_patches, check_multiple
from saga_ray.encoder.mllm_files import pixel_statistics, vision_config, vision_weights
from saga_ray.model_folder import model_folder
from saga_ray.types import VisualTokens


class VisionTower(Tower):
    """Images to visual tokens: level 0 enters the language model as embeddings, the others are DeepStack features.

    Pixels, patch order and numbers are those of the stock image processor and `Qwen3VLVisionModel`; images of a batch have
    one size, so that attention runs over all of them at once.
    """

    kind = "qwen3_vl"

    def __init__(self, config: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(mean, std)
        self.settings = {"vision_config": dict(config), "image_mean": list(mean), "image_std": list(std)}
        self.visual = Qwen3VLVisionModel(Qwen3VLVisionConfig.from_dict(dict(config)))
        # Same parameters, other kernels: see the classes below.
        self.visual.patch_embed.__class__ = _PatchEmbedAsLinear
        for block in self.visual.blocks:
            block.attn.__class__ = _BatchedAttention

    @classmethod
    def from_mllm_folder(
        cls, path: str | None, revision: str | None = None, dtype: torch.dtype = torch.float32
    ) -> VisionTower:
        """The vision tower of an MLLM folder, hub id, or (None) the bundled demo model, with its weights.

        Raises:
            ValueError: if the folder is missing, damaged, or of another family.
        """
        folder = model_folder(path, revision)
        mean, std = pixel_statistics(folder)
        tower = cls(vision_config(folder), mean, std)
        _load(tower.visual, vision_weights(folder), f"mllm.path: {folder.name}")
        return tower.to(dtype)

    @property
    def width(self) -> int:
        return self.visual.config.out_hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.patch_embed.proj.weight.dtype

    @property
    def backbone(self) -> str:
        return f"qwen3-vl-vision-{self.visual.config.depth}x{self.visual.config.hidden_size}"

    def check_size(self, size: int) -> None:
        check_multiple(size, self.visual.config.patch_size * self.visual.config.spatial_merge_size)

    def patches(self, images_NHWC: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised patches as the stock image processor lays them out, and their grid (rows, columns).

        Returns:
            (N * patches, channels * temporal * patch * patch) float32; merged groups of patches are neighbours.

        Raises:
            ValueError: if the side is no multiple of patch size times merge size.
        """
        config = self.visual.config
        patch, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        _, height, width, _ = images_NHWC.shape
        if height % (patch * merge) or width % (patch * merge):
            raise ValueError(
                f"data.image_size: images of {height} x {width} are no multiple of {patch * merge} pixels "
                f"(patch {patch} x merge {merge} of this tower); choose a multiple"
            )
        return as_patches(self.normalised(images_NHWC), patch, merge, frames)

    def forward(self, images_NHWC: Tensor) -> VisualTokens:
        """Visual tokens of uint8 images of one size."""
        num = images_NHWC.shape[0]
        merge = self.visual.config.spatial_merge_size
        images_NHWC = images_NHWC.to(self.mean_C.device)
        patches, (rows, columns) = self.patches(images_NHWC)
        out = self.visual(patches, grid_thw=_grid(num, rows, columns), **self._layout(num, rows, columns))
        levels = [out.pooler_output, *out.deepstack_features]
        grid_hw = (rows // merge, columns // merge)
        tokens_NLTD = torch.stack([level.view(num, grid_hw[0] * grid_hw[1], -1) for level in levels], dim=1)
        return VisualTokens(tokens_NLTD, grid_hw)

    def _layout(self, num: int, rows: int, columns: int) -> dict[str, Tensor]:
        config = self.visual.config
        layout = _one_image_layout(rows, columns, self.visual.num_grid_per_side, config.spatial_merge_size)
        indices, weights, positions = (tensor.to(self.mean_C.device) for tensor in layout)
        return {
            "interp_indices": indices.repeat(num, 1),
            "interp_weights": weights.repeat(num, 1),
            "position_ids": positions.repeat(num, 1),
            "cu_seqlens": torch.arange(0, (num + 1) * rows * columns, rows * columns, dtype=torch.int32),
        }


def _grid(num: int, rows: int, columns: int) -> Tensor:
    return torch.tensor([[1, rows, columns]]).expand(num, 3)


@lru_cache(maxsize=16)
def _one_image_layout(rows: int, columns: int, side: int, merge: int) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolation of the learned positions and rotary positions of one image; the same for all images of a size."""
    grid = _grid(1, rows, columns)
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    return indices, weights, get_vision_position_ids(grid, merge)


class _PatchEmbedAsLinear(Qwen3VLVisionPatchEmbed):
    """The stock patch embedding: its convolution covers the whole patch, so it is one matrix product, and faster as such."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight
        return F.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


class _BatchedAttention(Qwen3VLVisionAttention):
    """The stock attention over images of one size: one call for all of them, where the stock loop makes one per image.

    Rotary angles are applied in float32 as in stock code, but in float64 when the tower is in float64: a cast to float32
    in between would round neighbours apart, and results would depend on what else is in the batch.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        num_images = cu_seqlens.shape[0] - 1
        qkv = self.qkv(hidden_states).view(num_images, -1, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        cos, sin = (
            angle.view(num_images, 1, -1, self.head_dim).to(torch.promote_types(query.dtype, torch.float32))
            for angle in position_embeddings
        )
        query, key = ((x * cos + rotate_half(x) * sin).to(value.dtype) for x in (query, key))
        out = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.proj(out.transpose(1, 2).reshape(hidden_states.shape[0], -1))


def _load(visual: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    problems = visual.load_state_dict(weights, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        wrong = [
            *(f"missing {key}" for key in problems.missing_keys),
            *(f"unknown {key}" for key in problems.unexpected_keys),
        ]
        raise ValueError(
            f"{source}: its vision weights do not fit its config ({', '.join(wrong[:3])}); use files of one model"
        )
