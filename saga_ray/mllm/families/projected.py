"""Families with a projector and plain positions: InternVL, SmolVLM, Idefics 3, LLaVA, LLaVA-OneVision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from saga_ray.mllm.families.base import Family
from saga_ray.mllm.marks import ImageMarks


class InternVL(Family):
    """InternVL 3 and 3.5 in the library's own form (`-hf` repositories): `<img>` and `</img>` around one crop."""

    text_types = ("qwen2", "qwen3")
    stacked = True

    def marks(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ImageMarks:
        plain = super().marks(config, tokenizer)
        start, end = getattr(tokenizer, "start_image_token", "<img>"), getattr(tokenizer, "end_image_token", "</img>")
        return ImageMarks(plain.placeholder, start, end)


class SmolVLM(Family):
    """SmolVLM and Idefics 3: the global crop alone, between two `<fake_token_around_image>`."""

    text_types = ("llama",)

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model.text_model

    def marks(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ImageMarks:
        plain = super().marks(config, tokenizer)
        # The names that the library's own processors fall back on.
        fake = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        return ImageMarks(plain.placeholder, fake + getattr(tokenizer, "global_image_token", "<global-img>"), fake)


class Llava(Family):
    """LLaVA 1.5: an image is its projected patches, nothing stands around them."""

    text_types = ("llama", "qwen2")


class LlavaOneVision(Llava):
    """In a prompt of several images each is one crop and one `image_newline`, a parameter of the MLLM."""

    text_types = ("qwen2",)

    def closing_ids(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return (config.image_token_id,)

    def embed(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        is_newline = (ids == model.config.image_token_id)[..., None]
        newline_D = model.model.image_newline
        embedded = super().embed(model, ids)
        return torch.where(is_newline, newline_D.to(embedded.device, embedded.dtype), embedded)

    def whole_image(self, model: PreTrainedModel, tokens_TD: Tensor) -> Tensor:
        return torch.cat((tokens_TD, model.model.image_newline[None].to(tokens_TD)), dim=0)

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        if config.get("vision_feature_select_strategy", "full") != "full":
            return "its vision_feature_select_strategy is not 'full'"
        return super().refusal(config)
