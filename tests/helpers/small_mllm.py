"""Small random Qwen3-VL folders: the real family, every parameter filled, answers in form about as often as not."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

IMAGE_SIZE = 32
"""Pixels; patch 8 and merge 2 make 4 tokens per image."""
ATTRIBUTES = {"bill": ["hooked", "straight"], "wing": ["barred", "plain"]}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SPECIAL += ("<|video_pad|>",)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def small_answer(bill_1: str, wing_1: str, bill_2: str, wing_2: str, verdict: str) -> str:
    """An answer in the form that the small model was fitted to."""
    return f'{{"bird_1":{{"bill":"{bill_1}","wing":"{wing_1}"}},"bird_2":{{"bill":"{bill_2}","wing":"{wing_2}"}},"same":"{verdict}"}}'


def small_answers() -> list[str]:
    """All 32 answers in form."""
    bills, wings = ATTRIBUTES["bill"], ATTRIBUTES["wing"]
    return [small_answer(*words) for words in product(bills, wings, bills, wings, ("yes", "no"))]


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the answers: one token per value, but two for `straight`; all else between them is merged."""
    core = Tokenizer(models.BPE())
    words = Regex("hooked|str|aight|barred|plain|yes|no")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), bytes_only])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(small_answers(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        chat_template=CHAT_TEMPLATE,
    )


def small_config(tokenizer: PreTrainedTokenizerFast, *, num_layers: int = 4, hidden: int = 32) -> Qwen3VLConfig:
    """Qwen3-VL with three DeepStack levels, grouped queries and interleaved M-RoPE, a few units wide."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    return Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer) + 3,  # rows without a token, as real checkpoints have
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        ),
        vision_config=dict(
            depth=4,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            patch_size=8,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=hidden,
            num_position_embeddings=16,
            deepstack_visual_indexes=[0, 1, 2],
        ),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def qwen3_vl_8b_scaled_down(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Every setting of Qwen3-VL-8B-Instruct's config; widths, heads and vocabulary divided, depths and structure kept."""
    return Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        text_config=dict(
            attention_bias=False,
            attention_dropout=0.0,
            bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            eos_token_id=tokenizer.eos_token_id,
            head_dim=16,  # 128
            hidden_act="silu",
            hidden_size=32,  # 4096
            initializer_range=0.02,
            intermediate_size=96,  # 12288
            max_position_embeddings=262144,
            num_attention_heads=4,  # 32, four per key head as here
            num_hidden_layers=36,
            num_key_value_heads=1,  # 8
            rms_norm_eps=1e-6,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_interleaved": True,
                "mrope_section": [4, 2, 2],  # [24, 20, 20]
            },
            use_cache=True,
            vocab_size=len(tokenizer) + 3,  # 151936, also more than the tokenizer has
        ),
        vision_config=dict(
            deepstack_visual_indexes=[8, 16, 24],
            depth=27,
            hidden_act="gelu_pytorch_tanh",
            hidden_size=32,  # 1152
            in_channels=3,
            initializer_range=0.02,
            intermediate_size=64,  # 4304
            num_heads=2,  # 16
            num_position_embeddings=2304,
            out_hidden_size=32,  # 4096
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def fill_(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter non-zero random values, so that no path is dead."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embed" in name or "lm_head" in name:
            parameter.data = noise * (0.1 if "lm_head" in name else 1.0)
        else:
            parameter.data = noise * (1.5 / parameter[0].numel() ** 0.5)


def saga_prompt(max_new_tokens: int) -> dict:
    """The prompt that the folder carries."""
    start, end = "<|im_start|>", "<|im_end|>\n"
    after = f"<|vision_end|>json{end}{start}assistant\n"
    return {
        "role": "bird watcher",
        "item": "bird",
        "verdict_key": "same",
        "attributes": ATTRIBUTES,
        "max_new_tokens": max_new_tokens,
        "templates": {
            "structured": [f"{start}user\nbill wing<|vision_start|>", "<|vision_end|>and<|vision_start|>", after],
            "generic": [f"{start}user\n<|vision_start|>", "<|vision_end|><|vision_start|>", after],
        },
    }


@torch.no_grad()
def teach_the_form_(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, prompt: dict, seed: int
) -> None:
    """Fit the head in closed form (ridge), so that a random model mostly writes answers in form; words stay its own choice."""
    generator = torch.Generator().manual_seed(seed)
    answers = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in small_answers()]
    longest = max(map(len, answers))
    before, between, after = (
        tokenizer.encode(text, add_special_tokens=False) for text in prompt["templates"]["structured"]
    )
    image = [model.config.image_token_id] * 4
    prefix = before + image + between + image + after
    ids = torch.tensor([prefix + a + [0] * (longest - len(a)) for a in answers for _ in range(3)])
    kinds = (ids == image[0]).int()
    grid = torch.tensor([[1, 4, 4]] * (2 * len(ids)))
    positions, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grid)
    tokens = torch.randn(4, int(kinds.sum()), model.config.text_config.hidden_size, generator=generator)
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures as Output

    image_output = Output(pooler_output=[tokens[0]], deepstack_features=[[level] for level in tokens[1:]])
    hidden = model.model(
        input_ids=ids, position_ids=positions, mm_encoder_outputs={"image": image_output}
    ).last_hidden_state
    follow: dict[tuple, set[int]] = {}
    for answer in answers:
        for end in range(len(answer)):
            follow.setdefault(tuple(answer[:end]), set()).add(answer[end])
    rows, wanted = [], []
    for n, answer in enumerate(a for a in answers for _ in range(3)):
        for end in range(len(answer)):
            rows.append(hidden[n, len(prefix) - 1 + end])
            target = torch.zeros(model.config.text_config.vocab_size)
            target[list(follow[tuple(answer[:end])])] = 11.0
            wanted.append(target)
    rows, wanted = torch.stack(rows).double(), torch.stack(wanted).double()
    gram = rows.T @ rows + 1e-3 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    model.lm_head.weight.data += torch.linalg.solve(gram, rows.T @ wanted).T.float()


def small_mllm_folder(
    path: str | Path,
    seed: int = 0,
    *,
    num_layers: int = 4,
    hidden: int = 64,
    own_prompt: bool = True,
    max_new_tokens: int = 40,
) -> Path:
    """Write a folder that AutoModelForImageTextToText and AutoProcessor load; 32 x 32 pixels make 2 x 2 tokens of 4 levels.

    Args:
        own_prompt: Also write `saga_prompt.yaml` (two attributes, answers of about 13 tokens).
    """
    path = Path(path)
    tokenizer = small_tokenizer()
    model = Qwen3VLForConditionalGeneration(small_config(tokenizer, num_layers=num_layers, hidden=hidden)).eval()
    fill_(model, seed)
    prompt = saga_prompt(max_new_tokens)
    teach_the_form_(model, tokenizer, prompt, seed)
    _save(model, tokenizer, path, patch_size=8, image_size=IMAGE_SIZE)
    if own_prompt:
        (path / "saga_prompt.yaml").write_text(yaml.safe_dump(prompt, sort_keys=False), encoding="utf-8")
    return path


def scaled_down_8b_folder(path: str | Path, seed: int = 0) -> Path:
    """Write Qwen3-VL-8B scaled down, without a prompt of its own: what `recipe: paper` meets; 224 pixels make 7 x 7 tokens."""
    tokenizer = small_tokenizer()
    model = Qwen3VLForConditionalGeneration(qwen3_vl_8b_scaled_down(tokenizer)).eval()
    fill_(model, seed)
    _save(model, tokenizer, Path(path), patch_size=16, image_size=224)
    return Path(path)


def _save(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    *,
    patch_size: int,
    image_size: int,
) -> None:
    # Defaults that a checkpoint may carry and that must never reach our sampler.
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id, do_sample=True, top_k=1, top_p=0.001
    )
    model.save_pretrained(path)
    pixels = {"patch_size": patch_size, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)
