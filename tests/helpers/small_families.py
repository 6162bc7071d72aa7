"""Small random MLLMs of every supported family: own tokenizer and processor, every parameter filled, a normal folder.

All show 32 x 32 pixels as 2 x 2 tokens. Language models differ where families differ: grouped queries, experts,
windows shorter than the prompt, two kinds of rotary angles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Glm4vConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.helpers.small_mllm import fill_, small_answers, small_config

IMAGE_SIZE = 32
HIDDEN = 48
PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
TEXT: dict[str, Any] = dict(
    hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=4096,
)  # fmt: skip
VIT: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE_SIZE
)


@dataclass(frozen=True)
class SmallFamily:
    """How a family's small model is made."""

    special: dict[str, str]
    """Named special tokens of its tokenizer."""
    image: str
    """What its chat template writes for an image."""
    config: Callable[[PreTrainedTokenizerFast], PreTrainedConfig]
    processor: Callable[[PreTrainedTokenizerFast, str], ProcessorMixin]
    bos: str | None = None
    """Written by the template at the start."""
    roles: tuple[str, str] = ("<|im_start|>{role}\n", "<|im_end|>\n")
    crops_off: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the processor that give one crop per image."""

    def template(self) -> str:
        """A chat template in the form of the family's own."""
        opening, closing = self.roles
        opening = opening.replace("{role}", "{{ m.role }}")
        return (
            f"{self.bos or ''}{{% for m in messages %}}{opening}{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}"
            f"{{% for c in m.content %}}{{% if c.type == 'image' %}}{self.image}{{% else %}}{{{{ c.text }}}}{{% endif %}}"
            f"{{% endfor %}}{{% endif %}}{closing}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{self.roles[0].replace('{role}', 'assistant')}{{% endif %}}"
        )


def family_tokenizer(family: SmallFamily) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the family's special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", *family.special.values(), *([family.bos] if family.bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(small_answers(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token=family.bos, padding_side="left",
        extra_special_tokens=family.special, chat_template=family.template(),
    )  # fmt: skip


def _ids(tokenizer: PreTrainedTokenizerFast, **names: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return TEXT | {"vocab_size": len(tokenizer) + 3} | ids | more


# Qwen

QWEN = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
}  # fmt: skip
QWEN_PIXELS = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return _ids(tokenizer, **{f"{name}_id": token for name, token in QWEN.items()})


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return small_config(tokenizer, num_layers=4, hidden=HIDDEN)


def _qwen3_vl_moe(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    dense = small_config(tokenizer, num_layers=4, hidden=HIDDEN)
    text = dense.text_config.to_dict() | {
        "model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "mlp_only_layers": [1], "decoder_sparse_step": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = dense.vision_config.to_dict() | {"model_type": "qwen3_vl_moe_vision"}
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **_qwen_ids(tokenizer))


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = dict(
        depth=3, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=8, spatial_merge_size=2,
        temporal_patch_size=2, out_hidden_size=HIDDEN, window_size=16, fullatt_block_indexes=[1], tokens_per_second=2,
    )  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=MROPE), vision_config=vision, **_qwen_ids(tokenizer)
    )


def _qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = dict(
        depth=2, embed_dim=32, hidden_size=HIDDEN, num_heads=2, mlp_ratio=2, patch_size=8, spatial_merge_size=2,
        temporal_patch_size=2,
    )  # fmt: skip
    return Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=MROPE), vision_config=vision, **_qwen_ids(tokenizer)
    )


GLM = {
    "image_token": "<|image|>", "video_token": "<|video|>", "image_start": "<|begin_of_image|>",
    "image_end": "<|end_of_image|>", "video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>",
}  # fmt: skip


def _glm4v(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    # Half of a head is turned.
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}
    vision = dict(
        depth=2, hidden_size=32, num_heads=2, patch_size=8, spatial_merge_size=2, temporal_patch_size=2,
        image_size=IMAGE_SIZE, out_hidden_size=HIDDEN, intermediate_size=64,
    )  # fmt: skip
    ids = {f"{name.removesuffix('_token')}_token_id": token for name, token in GLM.items()}
    return Glm4vConfig(
        text_config=_text(tokenizer, rope_parameters=rope), vision_config=vision, tie_word_embeddings=False,
        **_ids(tokenizer, **ids),
    )  # fmt: skip


def _glm4v_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    size = {"shortest_edge": 2 * IMAGE_SIZE**2, "longest_edge": 2 * IMAGE_SIZE**2}
    return Glm4vProcessor(
        image_processor=Glm4vImageProcessor(**QWEN_PIXELS, size=size, **PIXELS), tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(**QWEN_PIXELS), chat_template=template,
    )  # fmt: skip


def _qwen_processor(kind: type[ProcessorMixin]) -> Callable[[PreTrainedTokenizerFast, str], ProcessorMixin]:
    def make(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
        size = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
        return kind(
            image_processor=Qwen2VLImageProcessor(**QWEN_PIXELS, size=size, **PIXELS),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(**QWEN_PIXELS),
            chat_template=template,
        )

    return make


def _qwen(config: Callable[[PreTrainedTokenizerFast], PreTrainedConfig], kind: type[ProcessorMixin]) -> SmallFamily:
    return SmallFamily(QWEN, "<|vision_start|><|image_pad|><|vision_end|>", config, _qwen_processor(kind))


# InternVL

INTERNVL = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip


def _internvl(tokenizer: PreTrainedTokenizerFast, text_type: str) -> PreTrainedConfig:
    # InternVL 3's language model is a Qwen2 with dynamic angles, that of 3.5 a Qwen3.
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    more = {"rope_parameters": rope} if text_type == "qwen2" else {"head_dim": 16}
    vision = VIT | {"image_size": [IMAGE_SIZE] * 2, "patch_size": [8, 8], "use_qk_norm": text_type == "qwen3"}
    return InternVLConfig(
        text_config=_text(tokenizer, model_type=text_type, **more), vision_config=vision, image_seq_length=4,
        tie_word_embeddings=False, **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )  # fmt: skip


def _internvl_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, **PIXELS), tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size), image_seq_length=4, chat_template=template,
    )  # fmt: skip


def _internvl_family(text_type: str) -> SmallFamily:
    return SmallFamily(
        INTERNVL, "<IMG_CONTEXT>\n", lambda tokenizer: _internvl(tokenizer, text_type), _internvl_processor,
        crops_off={"crop_to_patches": False},
    )  # fmt: skip


# SmolVLM and Idefics 3

SMOLVLM = {
    "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>", "video_token": "<video>",
}  # fmt: skip


def _smolvlm(
    kind: type[PreTrainedConfig], processor: type[ProcessorMixin], images: type, videos: type | None
) -> SmallFamily:
    def config(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
        return kind(
            text_config=_text(tokenizer, model_type="llama"), vision_config=VIT | {"patch_size": 8}, scale_factor=2,
            **_ids(tokenizer, image_token_id="<image>"),
        )  # fmt: skip

    def make(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
        size = {"longest_edge": IMAGE_SIZE}
        pixels = images(size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size=size, do_image_splitting=True, **PIXELS)
        more = {"video_processor": videos(size=size, max_image_size=size)} if videos is not None else {}
        return processor(image_processor=pixels, tokenizer=tokenizer, image_seq_len=4, chat_template=template, **more)

    crops_off = {"do_image_splitting": False, "size": {"longest_edge": IMAGE_SIZE}}
    roles = ("<|im_start|>{role}: ", "<end_of_utterance>\n")
    return SmallFamily(SMOLVLM, "<image>", config, make, roles=roles, crops_off=crops_off)


# LLaVA

LLAVA = {"image_token": "<image>", "video_token": "<video>"}


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = VIT | {"model_type": "siglip_vision_model", "patch_size": 16, "vision_use_head": False}
    return LlavaOnevisionConfig(
        text_config=_text(tokenizer, model_type="qwen2"), vision_config=vision,
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]],
        **_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )  # fmt: skip


def _llava_onevision_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pinpoints = [[32, 32], [32, 64], [64, 32]]
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints, **PIXELS),
        tokenizer=tokenizer, video_processor=LlavaOnevisionVideoProcessor(size=size), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=template,
    )  # fmt: skip


def _llava(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = VIT | {"model_type": "clip_vision_model", "patch_size": 16, "num_hidden_layers": 3, "projection_dim": 16}
    return LlavaConfig(
        text_config=_text(tokenizer, model_type="llama"), vision_config=vision, image_seq_length=4,
        **_ids(tokenizer, image_token_index="<image>"),
    )  # fmt: skip


def _llava_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    size = {"shortest_edge": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}, **PIXELS),
        tokenizer=tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


# Gemma 3

GEMMA = {
    "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
}  # fmt: skip


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    text = _text(
        # A window much shorter than the prompt: it ends within images, and within answers.
        tokenizer, num_hidden_layers=4, layer_types=kinds, sliding_window=7, head_dim=16, query_pre_attn_scalar=20,
        bos_token_id=tokenizer.bos_token_id,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )  # fmt: skip
    ids = {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>"}
    vision = VIT | {"model_type": "siglip_vision_model", "patch_size": 8, "vision_use_head": False}
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=True,
        **_ids(tokenizer, **ids, eoi_token_index="<end_of_image>"),
    )  # fmt: skip


def _gemma3_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=size, **PIXELS), tokenizer=tokenizer, image_seq_length=4,
        chat_template=template,
    )  # fmt: skip


SMALL_FAMILIES: dict[str, SmallFamily] = {
    "qwen3_vl": _qwen(_qwen3_vl, Qwen3VLProcessor),
    "qwen3_vl_moe": _qwen(_qwen3_vl_moe, Qwen3VLProcessor),
    "qwen2_5_vl": _qwen(_qwen2_5_vl, Qwen2_5_VLProcessor),
    "qwen2_vl": _qwen(_qwen2_vl, Qwen2VLProcessor),
    "glm4v": SmallFamily(GLM, "<|begin_of_image|><|image|><|end_of_image|>", _glm4v, _glm4v_processor),
    "internvl": _internvl_family("qwen2"),
    "internvl-qwen3": _internvl_family("qwen3"),
    "smolvlm": _smolvlm(SmolVLMConfig, SmolVLMProcessor, SmolVLMImageProcessor, SmolVLMVideoProcessor),
    "idefics3": _smolvlm(Idefics3Config, Idefics3Processor, Idefics3ImageProcessor, None),
    "llava_onevision": SmallFamily(LLAVA, "<image>", _llava_onevision, _llava_onevision_processor),
    "llava": SmallFamily(LLAVA, "<image>", _llava, _llava_processor),
    "gemma3": SmallFamily(
        GEMMA, "<start_of_image>", _gemma3, _gemma3_processor, bos="<bos>",
        roles=("<|im_start|>{role}\n", "<|im_end|>\n"),
    ),
}  # fmt: skip
"""By name; what follows a hyphen is a variant of the family before it."""


def small_family_folder(path: str | Path, name: str, seed: int = 0) -> Path:
    """Write a small random model of a family, its tokenizer and processor, as a normal folder."""
    family = SMALL_FAMILIES[name]
    tokenizer = family_tokenizer(family)
    model = AutoModelForImageTextToText.from_config(family.config(tokenizer)).eval()
    fill_(model, seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "experts" in parameter_name:  # filled as one matrix, but each expert is one
                parameter *= parameter.shape[1] ** 0.5
            if name == "gemma3" and "embed_tokens" in parameter_name:
                parameter *= 0.1  # it is the head as well: at full length every token would be certain of itself
    model.save_pretrained(path)
    family.processor(tokenizer, family.template()).save_pretrained(path)
    return Path(path)
