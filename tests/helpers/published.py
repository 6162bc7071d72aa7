"""Small families' folders with files as they are published: fewer names, older forms than this library's own.

Written after the repositories of the models: special tokens are listed but seldom named, image processors have a file
of their own, the chat template stands in chat_template.json, and Qwen2-VL's language model at the top of config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.small_families import SMALL_FAMILIES
from tests.helpers.small_mllm import small_answers

_FLAT = ("qwen2_vl", "qwen2_5_vl")
"""Families whose config.json holds the language model's settings at the top."""
_WITHOUT_PROCESSOR_FILE = (*_FLAT, "qwen3_vl", "qwen3_vl_moe", "glm4v")


def as_published(folder: Path, name: str, *, named: bool = False) -> Path:
    """Rewrite a small family's folder in place.

    Args:
        named: Keep the tokenizer's names of special tokens, and nothing else: the twin that must give the same numbers.
    """
    _tokenizer(folder, name, named)
    _processor(folder, name)
    _config(folder, name)
    return folder


def _tokenizer(folder: Path, name: str, named: bool) -> None:
    values = _read(folder / "tokenizer_config.json")
    names = SMALL_FAMILIES[name].special
    values = {key: value for key, value in values.items() if named or key not in names}
    del values["backend"], values["extra_special_tokens"]
    tokens = _read(folder / "tokenizer.json")["added_tokens"]
    listed = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokens}
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    _write(folder / "chat_template.json", {"chat_template": template})
    more = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": listed,
        "additional_special_tokens": [token["content"] for token in tokens],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    _write(folder / "tokenizer_config.json", values | more)


def _processor(folder: Path, name: str) -> None:
    values = _read(folder / "processor_config.json")
    images, videos = values.pop("image_processor"), values.pop("video_processor", None)
    if name in _FLAT:
        size = images.pop("size")
        images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    images["processor_class"] = values["processor_class"]
    _write(folder / "preprocessor_config.json", images)
    if videos is not None and name not in _FLAT:
        _write(folder / "video_preprocessor_config.json", videos | {"processor_class": values["processor_class"]})
    if name in _WITHOUT_PROCESSOR_FILE:
        (folder / "processor_config.json").unlink()
    else:
        _write(folder / "processor_config.json", values)


def _config(folder: Path, name: str) -> None:
    values = _read(folder / "config.json")
    if name in _FLAT:
        text = values.pop("text_config")
        rope = text.pop("rope_parameters")
        rope = {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        }
        text.pop("layer_types", None)
        values = text | rope | values
    values["torch_dtype"] = values.pop("dtype", "float32")
    values["transformers_version"] = "4.49.0"
    _write(folder / "config.json", values)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As LLaVA 1.5's: a space is a character of words, and what is tokenised alone begins with one."""
    core = Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    texts = [f"{word} or {word}, {word}" for word in ("yes", "no")] * 20
    core.train_from_iterator([*texts, *small_answers()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
