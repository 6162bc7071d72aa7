"""Families of MLLMs that the scorer differentiates exactly, and why others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_ray.mllm.families.base import Family
from saga_ray.mllm.families.gemma3 import Gemma3
from saga_ray.mllm.families.projected import InternVL, Llava, LlavaOneVision, SmolVLM
from saga_ray.mllm.families.qwen_vl import DeepStack, GridPositions

__all__ = ["FAMILIES", "REFUSED", "Family", "family_named", "refusal_of"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        DeepStack("qwen3_vl"),
        DeepStack("qwen3_vl_moe"),
        GridPositions("qwen2_5_vl"),
        GridPositions("qwen2_vl"),
        GridPositions("glm4v"),
        InternVL("internvl"),
        SmolVLM("smolvlm"),
        SmolVLM("idefics3"),
        LlavaOneVision("llava_onevision"),
        Llava("llava"),
        Gemma3("gemma3"),
    )
}
"""By `model_type`; each passes `tests/mllm/test_families.py`."""

_CROSS = "its images enter by cross-attention, so there are no visual tokens in the prompt to differentiate"
_LINEAR = "its linear-attention layers hold a state and no keys, so a prefix shared by answers gives wrong gradients without an error"
_REMOTE = "it is code from the hub, which is never run; use the -hf repository of the model"
REFUSED: dict[str, str] = {
    "mllama": _CROSS,
    "idefics": _CROSS,
    "evolla": _CROSS,
    "blip-2": "its query tokens come from a transformer between tower and language model",
    "instructblip": "its query tokens come from a transformer between tower and language model",
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "internvl_chat": _REMOTE,
    "paligemma": "its whole prompt sees itself in both directions, so its last token cannot be split from the prefix",
    "mistral3": "its prompt has a break token behind every row of an image, so an image is no run of tokens",
    "pixtral": "its prompt has a break token behind every row of an image, so an image is no run of tokens",
    "llava_next": "its prompt has a newline behind every row of an image's crops, so an image is no run of tokens",
    "gemma3n": "every layer reads embeddings of its own, which injected tokens would not have",
    "gemma4": "every layer reads embeddings of its own, which injected tokens would not have",
}
"""By `model_type`, with the reason."""


def family_named(name: str) -> Family:
    """The adapter of a `model_type`.

    Raises:
        KeyError: for a family that is not supported; folders are checked before (`mllm.loading.check_folder`).
    """
    return FAMILIES[name]


def refusal_of(config: Mapping[str, Any]) -> str | None:
    """Why a folder with this config.json cannot be used, or None."""
    name = config.get("model_type")
    if name in REFUSED:
        return REFUSED[name]
    if config.get("auto_map"):
        return "it wants code of its own to be run (auto_map in config.json), which never happens"
    if name not in FAMILIES:
        return f"only in {', '.join(FAMILIES)} the tokens' gradient was shown to be exact"
    return FAMILIES[name].refusal(config)
