"""Qwen2-VL, Qwen2.5-VL, GLM-4V (positions of three axes) and Qwen3-VL (these, and DeepStack)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from saga_ray.mllm.families.base import Family


class GridPositions(Family):
    """M-RoPE: a token has a position in time, row and column; text goes on behind the longer side of an image."""

    def positions(self, model: PreTrainedModel, ids_C: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        config = model.config
        merge = config.vision_config.spatial_merge_size
        kinds_1C = (ids_C == config.image_token_id).int()[None]
        grids = torch.tensor([[1, merge * grid_hw[0], merge * grid_hw[1]]] * 2)
        positions, _ = model.model.get_rope_index(ids_C[None], kinds_1C, image_grid_thw=grids)
        return positions[:, 0]

    def num_positions(self, num_text: int, grid_hw: tuple[int, int]) -> int:
        return num_text + 2 * max(grid_hw)

    def rotary(self, decoder: nn.Module, hidden_SRD: Tensor, positions_3R: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        positions_3SR = positions_3R[:, None] if positions_3R.ndim == 2 else positions_3R
        return [decoder.rotary_emb(hidden_SRD, positions_3SR)] * len(decoder.layers)

    def library_positions(self, positions_3C: Tensor, num_rows: int) -> Tensor:
        return positions_3C[:, None].expand(3, num_rows, -1)


class DeepStack(GridPositions):
    """Qwen3-VL: features of further tower layers are added to the image's rows after decoder layers 0, 1, 2."""

    def num_levels(self, config: PreTrainedConfig) -> int:
        return 1 + len(config.vision_config.deepstack_visual_indexes)

    def library_inputs(
        self, model: PreTrainedModel, levels: Sequence[Sequence[Tensor]], ids_SC: Tensor
    ) -> dict[str, Any]:
        output = BaseModelOutputWithDeepstackFeatures(
            pooler_output=list(levels[0]), deepstack_features=[list(level) for level in levels[1:]]
        )
        return {"mm_encoder_outputs": {"image": output}}
