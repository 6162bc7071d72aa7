"""What differs between families of MLLMs: everything else of the scorer is shared.

A family here is a `model_type` of the library. Its adapter says where the decoder is, how positions turn into rotary
angles, what stands around an image, which rows see each other in both directions, and how the library's own forward is
given visual tokens (for the naive twin). It holds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from saga_ray.mllm.marks import ImageMarks

LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
"""Rotary embeddings whose angles depend on the position alone, up to the model's own longest sequence."""


def text_of_id(tokenizer: PreTrainedTokenizerBase, key: str, token_id: int) -> str:
    """How a special token is written whose id stands under `key` in config.json.

    Raises:
        ValueError: if the tokenizer has no such token.
    """
    # An id that is too large is an error of its own in some tokenizers, None in others.
    text = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    if text is None or tokenizer.encode(text, add_special_tokens=False) != [token_id]:
        raise ValueError(
            f"mllm.path: the tokenizer in {tokenizer.name_or_path} has no special token {token_id}, which config.json names "
            f"as {key}; use files of one model"
        )
    return text


def text_positions(positions_3R: Tensor) -> Tensor:
    """Of one axis: (1, R) of all rows, or (S, R) of each."""
    return positions_3R[:1] if positions_3R.ndim == 2 else positions_3R[0]


class Family:
    """A vision tower whose tokens replace placeholders of a causal decoder with one-dimensional rotary positions."""

    text_types: ClassVar[tuple[str, ...]] = ()
    """`model_type` of the language models with which it was tested; empty: the family has only one."""
    bidirectional_images: ClassVar[bool] = False
    """The tokens of one image see each other in both directions."""
    stacked: ClassVar[bool] = False
    """The library takes one tensor (images, T, D) of visual tokens, not a list."""

    def __init__(self, name: str) -> None:
        self.name = name

    # Where things are

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """Embeddings, layers, final norm and rotary embedding of the language model."""
        return model.model.language_model

    def num_levels(self, config: PreTrainedConfig) -> int:
        """L: input embeddings, and features added after the first decoder layers."""
        return 1

    def banned_ids(self, config: PreTrainedConfig) -> list[int]:
        """Ids that stand for pictures and that no answer may hold."""
        ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
        return [i for i in ids if isinstance(i, int) and 0 <= i < config.get_text_config().vocab_size]

    # The prompt

    def marks(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ImageMarks:
        """What stands for an image in the chat template, and around its tokens in the prompt (one crop).

        Published tokenizers have all these tokens, but few have names for them: the configuration's ids say which they are.

        Raises:
            ValueError: for a tokenizer that lacks one.
        """
        return ImageMarks(text_of_id(tokenizer, "image_token_id", config.image_token_id))

    def closing_ids(self, config: PreTrainedConfig) -> tuple[int, ...]:
        """Placeholders behind an image's own tokens whose embedding is the MLLM's own, not the encoder's."""
        return ()

    def positions(self, model: PreTrainedModel, ids_C: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """int64 (3, C) positions of a prompt; all three rows are equal where a family has one position per token."""
        return torch.arange(len(ids_C)).expand(3, -1)

    def num_positions(self, num_text: int, grid_hw: tuple[int, int]) -> int:
        """Positions that a prompt of `num_text` tokens around two images of this grid takes up."""
        return num_text + 2 * grid_hw[0] * grid_hw[1]

    def embed(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Embeddings of ids outside the images, as the decoder's first layer gets them."""
        return self.decoder(model).embed_tokens(ids)

    # The decoder

    def rotary(self, decoder: nn.Module, hidden_SRD: Tensor, positions_3R: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        """(cos, sin) of every layer; positions of all rows, (3, R), or of each, (3, S, R)."""
        return [decoder.rotary_emb(hidden_SRD, text_positions(positions_3R))] * len(decoder.layers)

    # The library's own forward, for the naive twin

    def library_positions(self, positions_3C: Tensor, num_rows: int) -> Tensor:
        """`position_ids` of `num_rows` equal prompts."""
        return positions_3C[:1].expand(num_rows, -1)

    def library_inputs(
        self, model: PreTrainedModel, levels: Sequence[Sequence[Tensor]], ids_SC: Tensor
    ) -> dict[str, Any]:
        """Keyword arguments that hand visual tokens to the library's forward, made anew: the library changes them in place.

        Args:
            levels: Per level, (T, D) of every image of every row, in order.
            ids_SC: The rows' input ids.
        """
        images = [self.whole_image(model, tokens_TD) for tokens_TD in levels[0]]
        output = BaseModelOutputWithPooling(pooler_output=torch.stack(images) if self.stacked else images)
        return {"mm_encoder_outputs": {"image": output}}

    def whole_image(self, model: PreTrainedModel, tokens_TD: Tensor) -> Tensor:
        """An image's tokens with what `closing_ids` stands for."""
        return tokens_TD

    # What is refused

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Why a folder's config.json of this family cannot be used, or None."""
        # Older files of some families hold the language model's settings at the top.
        text = config.get("text_config") or config
        text_type = text.get("model_type", self.text_types[0] if self.text_types else None)
        if self.text_types and text_type not in self.text_types:
            return f"its language model is '{text_type}', tested are {', '.join(self.text_types)}"
        if strange := sorted(set(text.get("layer_types") or ()) - set(LAYER_TYPES)):
            return f"its language model has layers of kind {', '.join(strange)}, exact are {', '.join(LAYER_TYPES)}"
        if text.get("attn_logit_softcapping"):
            return "its attention has soft-capped logits, which the scorer's attention does not compute"
        if rope := next((kind for kind in _rope_types(text) if kind not in ROPE_TYPES), None):
            return f"its rotary embedding is of type '{rope}', whose angles depend on what else is in the sequence"
        return None


def _rope_types(text: Mapping[str, Any]) -> list[str]:
    """Types named in a text_config: one rotary embedding, or one per kind of layer; in the old form or the new."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    each = [rope, *(part for part in rope.values() if isinstance(part, Mapping))] if isinstance(rope, Mapping) else []
    found = [part.get("rope_type") or part.get("type") for part in each]
    # An old name for positions of three axes, which are the family's own affair.
    return ["default" if kind == "mrope" else str(kind) for kind in found if kind is not None]
