"""Reads what the encoder needs from an MLLM folder: vision config, pixel statistics and vision weights, nothing of the language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

VISION_PREFIXES = ("model.visual.", "visual.")
_OF_VISION = ("visual.", "vision_tower.", "multi_modal_projector.", "vision_model.", "connector.")


def config_json(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        ValueError: if it is damaged.
    """
    return _read_json(folder / "config.json")


def token_shape(folder: Path) -> tuple[int, int]:
    """Width D of the language model of a folder, and the number of levels of tokens that it reads.

    Raises:
        ValueError: if config.json is damaged or names no width.
    """
    config = config_json(folder)
    text = config.get("text_config")
    width = (text if isinstance(text, dict) else config).get("hidden_size")
    if not isinstance(width, int):
        raise ValueError(
            f"mllm.path: {folder.name}/config.json names no hidden_size of the language model; restore the file"
        )
    return width, 1 + len((config.get("vision_config") or {}).get("deepstack_visual_indexes") or ())


def vision_config(folder: Path) -> dict[str, Any]:
    """The `vision_config` of a Qwen3-VL folder.

    Raises:
        ValueError: if config.json is damaged or of another family.
    """
    config = _read_json(folder / "config.json")
    family = config.get("model_type")
    if family not in ("qwen3_vl", "qwen3_vl_moe") or "vision_config" not in config:
        raise ValueError(
            f"mllm.path: {folder.name}/config.json has model_type {family!r}, of whose tower nothing is known here; name an MLLM "
            f"of a family that `saga-ray mllm families` lists, or a tower with encoder.tower=timm:NAME"
        )
    # The tower of the model with experts is the same one under another name.
    return config["vision_config"] | ({"model_type": "qwen3_vl_vision"} if family == "qwen3_vl_moe" else {})


def pixel_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, on the scale 0 .. 1, as the folder's image processor has them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            config = _read_json(folder / name)
            config = config.get("image_processor", config)
            if "image_mean" in config and "image_std" in config:
                return tuple(config["image_mean"]), tuple(config["image_std"])
    raise ValueError(
        f"mllm.path: {folder.name} says nowhere how pixels are normalised (image_mean and image_std in preprocessor_config.json "
        f"or processor_config.json); add that file"
    )


def vision_weights(folder: Path, *, whole_names: bool = False) -> dict[str, Tensor]:
    """The vision tower's tensors, read alone from one or many safetensors files.

    Args:
        whole_names: Those of any family, projector included, named as in the file; else Qwen3-VL's, named as in
            `Qwen3VLVisionModel`.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index)["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names or any("/" in name or "\\" in name for name in names):
        raise ValueError(
            f"mllm.path: {folder.name} holds no usable *.safetensors; only safetensors weights are accepted"
        )
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as stream:
                for key in stream.keys():  # noqa: SIM118 (not a mapping)
                    prefix = next((prefix for prefix in VISION_PREFIXES if key.startswith(prefix)), None)
                    if whole_names and any(key.removeprefix("model.").startswith(part) for part in _OF_VISION):
                        weights[key] = stream.get_tensor(key)
                    elif prefix is not None and not whole_names:
                        weights[key.removeprefix(prefix)] = stream.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"mllm.path: {folder.name}/{name} cannot be read ({error}); download the file again"
            ) from None
    if not weights:
        names = "of a vision tower" if whole_names else "named model.visual.*"
        raise ValueError(f"mllm.path: {folder.name} has no tensors {names}; use the files of a whole MLLM")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"mllm.path: {path.parent.name}/{path.name} is not readable JSON ({error}); restore the file"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"mllm.path: {path.parent.name}/{path.name} holds {type(value).__name__}, expected an object; restore the file"
        )
    return value
