"""Gemma 3: images see themselves in both directions, most layers see a window, and each kind of layer has its angles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from saga_ray.mllm.families.base import Family, text_of_id, text_positions
from saga_ray.mllm.marks import ImageMarks


class Gemma3(Family):
    """Sliding windows are the attention's own (`mllm/attention.py`); the scaled embeddings are those of `embed_tokens`."""

    text_types = ("gemma3_text",)
    bidirectional_images = True
    stacked = True

    def marks(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ImageMarks:
        start = text_of_id(tokenizer, "boi_token_index", config.boi_token_index)
        end = text_of_id(tokenizer, "eoi_token_index", config.eoi_token_index)
        return ImageMarks(start, f"\n\n{start}", f"{end}\n\n")

    def rotary(self, decoder: nn.Module, hidden_SRD: Tensor, positions_3R: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        kinds = decoder.config.layer_types[: len(decoder.layers)]
        by_kind = {
            kind: decoder.rotary_emb(hidden_SRD, text_positions(positions_3R), kind) for kind in dict.fromkeys(kinds)
        }
        return [by_kind[kind] for kind in kinds]

    def library_inputs(
        self, model: PreTrainedModel, levels: Sequence[Sequence[Tensor]], ids_SC: Tensor
    ) -> dict[str, Any]:
        inputs = super().library_inputs(model, levels, ids_SC)
        return inputs | {"token_type_ids": (ids_SC == model.config.image_token_id).int()}

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        if (config.get("text_config") or {}).get("use_bidirectional_attention"):
            return "its text sees in both directions (use_bidirectional_attention), so that no answer can be sampled"
        return super().refusal(config)
