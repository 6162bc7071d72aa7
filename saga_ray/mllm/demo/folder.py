"""The demo MLLM as a normal model folder: configuration, tokenizer, processor, prompt."""

import re
from pathlib import Path

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from saga_ray.mllm.demo import words

WEIGHTS = Path(__file__).parent / "weights"
IMAGE_SIZE = 64
PATCH_SIZE = 8
MERGE_SIZE = 2
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH_SIZE // MERGE_SIZE) ** 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def demo_config() -> Qwen3VLConfig:
    """Qwen3-VL scaled down: 4 vision blocks and 4 decoder layers of width 128, three DeepStack levels."""
    ids = words.TOKEN_ID
    text = {
        "vocab_size": len(words.TOKENS),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "pad_token_id": ids[words.PAD],
        "eos_token_id": ids[words.END],
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 448,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": 2,
        "spatial_merge_size": MERGE_SIZE,
        "out_hidden_size": 128,
        "num_position_embeddings": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[words.IMAGE],
        video_token_id=ids[words.VIDEO],
        vision_start_token_id=ids[words.VISION_START],
        vision_end_token_id=ids[words.VISION_END],
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> Qwen3VLForConditionalGeneration:
    """A model with random weights, drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration._from_config(demo_config(), attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        eos_token_id=words.TOKEN_ID[words.END],
        pad_token_id=words.TOKEN_ID[words.PAD],
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=words.MAX_ANSWER_TOKENS,
    )
    return model


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `words.TOKENS`; text is cut at the longest token that fits, and decoding just joins."""
    tokenizer = Tokenizer(models.WordLevel(dict(words.TOKEN_ID), unk_token=words.UNKNOWN))
    plain = sorted((t for t in words.TOKENS if t not in words.SPECIAL), key=len, reverse=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(re.escape(t) for t in plain)), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=words.UNKNOWN,
        pad_token=words.PAD,
        eos_token=words.END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        extra_special_tokens={
            "im_start_token": words.START,
            "image_token": words.IMAGE,
            "video_token": words.VIDEO,
            "vision_start_token": words.VISION_START,
            "vision_end_token": words.VISION_END,
        },
    )


def new_processor() -> Qwen3VLProcessor:
    """Tokenizer and image processor; any picture becomes 64 x 64 pixels if it is square."""
    pixels = IMAGE_SIZE * IMAGE_SIZE
    shape = {"patch_size": PATCH_SIZE, "temporal_patch_size": 2, "merge_size": MERGE_SIZE}
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    normal = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **shape, **normal),
        tokenizer=new_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(size=size, **shape, **normal),
        chat_template=CHAT_TEMPLATE,
    )


def save_folder(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Write a folder that the Auto classes load, with the prompt that the model was taught."""
    model.save_pretrained(folder)
    new_processor().save_pretrained(folder)
    document = yaml.safe_dump(words.prompt_document(), sort_keys=False, allow_unicode=False)
    (folder / "saga_prompt.yaml").write_text(document, encoding="ascii")
