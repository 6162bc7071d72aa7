"""A Qwen3-VL of any size with random weights, every parameter filled, made where it will run; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from saga_ray.mllm.attention import install
from saga_ray.mllm.frozen import FrozenMLLM
from saga_ray.mllm.two_part import can_be_split

SPECIAL = ("<|end|>", "<|pad|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
JSON_WORDS = ('{"', '":{"', '":"', '","', '"},"', '"}', "bird_1", "bird_2", "same", "yes", "no")
"""What an answer in JSON is made of besides attributes and values; the last ids of the vocabulary."""
CHAT_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class MLLMShape:
    """Widths and depths; heads are of `head_dim` units each."""

    hidden: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tower_depth: int
    tower_hidden: int
    tower_intermediate: int
    tower_heads: int
    deepstack: tuple[int, ...]
    patch: int = 16

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer that take part in matrix products."""
        query, key = self.num_heads * self.head_dim, self.num_key_heads * self.head_dim
        return self.hidden * (2 * query + 2 * key + 3 * self.intermediate)

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of every matrix product of a decoder layer."""
        query, key = self.num_heads * self.head_dim, self.num_key_heads * self.head_dim
        ins = ((self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden))
        return (*ins, *((self.hidden, self.intermediate),) * 2, (self.intermediate, self.hidden))


QWEN3_VL_8B = MLLMShape(4096, 36, 32, 8, 128, 12288, 151936, 27, 1152, 4304, 16, (8, 16, 24))
"""Qwen3-VL-8B-Instruct's config."""


def random_mllm(shape: MLLMShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> FrozenMLLM:
    """Weights are drawn on the device, so that a model of 8 billion needs no memory elsewhere."""
    tokenizer = random_tokenizer(shape.vocabulary)
    config = _config(shape, tokenizer)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    _restore_buffers(model, config, device)
    fill_(model, seed)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    install(model)
    split = can_be_split(device, dtype)  # as a loaded one
    return FrozenMLLM(model, tokenizer, _processor(tokenizer), Path("random"), split=split)


def random_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words `t6`, `t7`, ... behind the special tokens and `JSON_WORDS` behind these, one token each; blanks may part them."""
    ids = {text: number for number, text in enumerate(SPECIAL)}
    ids |= {f"t{number}": number for number in range(len(SPECIAL), vocabulary - len(JSON_WORDS))}
    ids |= {word: len(ids) + number for number, word in enumerate(JSON_WORDS)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<|pad|>"))
    words = pre_tokenizers.Split(Regex(r't\d+|[{}":,]+'), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    core.decoder = decoders.Fuse()
    named = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    texts = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        padding_side="left",
        extra_special_tokens=dict(zip(named, texts, strict=True)),
        chat_template=CHAT_TEMPLATE,
    )


def _config(shape: MLLMShape, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    half = shape.head_dim // 2
    height = width = 5 * half // 16
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config=dict(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_key_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=262144,
            rope_parameters=rope | {"mrope_section": [half - height - width, height, width]},
            eos_token_id=ids["<|end|>"],
        ),
        vision_config=dict(
            depth=shape.tower_depth,
            hidden_size=shape.tower_hidden,
            intermediate_size=shape.tower_intermediate,
            num_heads=shape.tower_heads,
            patch_size=shape.patch,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=shape.hidden,
            num_position_embeddings=2304,
            deepstack_visual_indexes=list(shape.deepstack),
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


@torch.no_grad()
def fill_(model: nn.Module, seed: int, logit_std: float = 4.0) -> None:
    """Draw every parameter: activations keep their size from layer to layer, and the next token is about as certain as a
    trained model's, so that nuclei are small. No path is dead.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        spread = logit_std if "lm_head" in name else 1.0
        if "embed_tokens" in name:
            parameter.normal_(0.0, 1.0, generator=generator)
        elif parameter.ndim == 1:
            parameter.normal_(0.0, 0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        else:
            parameter.normal_(0.0, spread / fan_in**0.5, generator=generator)


def _restore_buffers(model: nn.Module, config: Qwen3VLConfig, device: torch.device) -> None:
    """Buffers that are computed when a module is made (rotary frequencies) hold nothing behind `to_empty`."""
    names = {name for name, _ in model.named_buffers()}
    made: dict[str, Tensor] = {}
    decoder, visual = model.model.language_model, model.model.visual
    made |= _buffers("model.language_model.rotary_emb", type(decoder.rotary_emb)(config.text_config))
    rotary = visual.rotary_pos_emb
    try:
        fresh = type(rotary)(config.vision_config)
    except (TypeError, AttributeError):  # an older library gives it the width of half a head
        fresh = type(rotary)(config.vision_config.hidden_size // config.vision_config.num_heads // 2)
    made |= _buffers("model.visual.rotary_pos_emb", fresh)
    assert names <= made.keys(), f"buffers without a value: {sorted(names - made.keys())}"
    for name in names:
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = made[name].to(device)


def _buffers(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": buffer for name, buffer in module.named_buffers()}


def _processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    pixels: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )
