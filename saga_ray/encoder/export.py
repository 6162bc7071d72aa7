"""A trained encoder as two files, and back: safetensors and JSON, without MLLM and without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from saga_ray import __version__
from saga_ray.encoder.build import KINDS, tower_from_settings
from saga_ray.encoder.encoder import Encoder
from saga_ray.encoder.pooler import POOLERS, build_pooler
from saga_ray.storage import Storage

FORMAT = 1
FOLDER = "encoder"


class ImageEmbedder(nn.Module):
    """Images to retrieval embeddings of length 1."""

    def __init__(self, encoder: Encoder, image_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = image_size

    def forward(self, images: Tensor | np.ndarray | Sequence[Any]) -> Tensor:
        """Embed images.

        Args:
            images: uint8 (N, H, W, 3), RGB, at the trained size, or a list of PIL images of any size, which are resized
                to a square as in training.

        Returns:
            (N, E).
        """
        if isinstance(images, (list, tuple)):
            images = _stacked(images, self.image_size)
        elif not isinstance(images, Tensor | np.ndarray):
            raise ValueError(f"images: expected a list of PIL images or an array, got {type(images).__name__}")
        images_NHWC = torch.as_tensor(images)
        if images_NHWC.ndim != 4 or tuple(images_NHWC.shape[1:]) != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"images: expected uint8 (N, {self.image_size}, {self.image_size}, 3) or a list of PIL images, "
                f"got shape {tuple(images_NHWC.shape)}; resize them first"
            )
        return self.encoder(images_NHWC).embedding_NE


def save_encoder(encoder: Encoder, folder: Storage, image_size: int) -> None:
    """Write `model.safetensors` and `encoder.json` into a folder."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    folder.write("model.safetensors", save_safetensors(weights))
    projection = getattr(encoder.pooler, "projection", None)
    settings = {
        "format": FORMAT,
        "version": __version__,
        "image_size": image_size,
        "tower": {"kind": encoder.tower.kind, **encoder.tower.settings},
        "pooler": {"kind": encoder.pooler.kind, "dim": getattr(projection, "out_features", None)},
        "dtype": str(encoder.tower.dtype).removeprefix("torch."),
    }
    folder.write("encoder.json", json.dumps(settings, indent=2, sort_keys=True).encode())


def load_encoder(run: str | Path) -> ImageEmbedder:
    """The trained encoder of a run (or of its `encoder` folder), ready to embed.

    Example: `load_encoder("runs/demo/saga-seed0")([Image.open("wren.jpg")])`.

    Raises:
        ValueError: if the folder holds no encoder, or a damaged one.
    """
    folder = Storage.open(run)
    if not folder.exists("encoder.json") and folder.exists(f"{FOLDER}/encoder.json"):
        folder = folder.child(FOLDER)
    if not folder.exists("encoder.json") or not folder.exists("model.safetensors"):
        raise ValueError(
            f"{run}: holds no trained encoder (encoder/encoder.json and encoder/model.safetensors); "
            f"name the folder of a finished run"
        )
    try:
        settings = json.loads(folder.read("encoder.json"))
        form, tower_settings, pooler_settings = settings["format"], settings["tower"], settings["pooler"]
        dtype = {"float32": torch.float32, "float64": torch.float64}[settings["dtype"]]
        known = form == FORMAT and tower_settings["kind"] in KINDS and pooler_settings["kind"] in POOLERS
        image_size = int(settings["image_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run}: encoder.json is damaged ({type(error).__name__}: {error}); restore it, or train again"
        ) from None
    if not known:
        raise ValueError(
            f"{run}: encoder.json was written by saga-ray {settings.get('version')} in a form that {__version__} cannot read; "
            f"use that version"
        )
    tower = tower_from_settings(tower_settings)
    encoder = Encoder(tower, build_pooler(pooler_settings["kind"], tower.width, pooler_settings["dim"])).to(dtype)
    try:
        encoder.load_state_dict(load_safetensors(folder.read("model.safetensors")))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{run}: model.safetensors is damaged or of another model ({first}); restore it, or train again"
        ) from None
    return ImageEmbedder(encoder.eval().requires_grad_(False), image_size)


def _stacked(images: Sequence[Any], size: int) -> np.ndarray:
    from PIL import Image

    if not images:
        raise ValueError("images: the list is empty; give at least one image")
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(f"images: expected PIL images, got {type(image).__name__}; open files with PIL.Image.open")
    squares = [np.array(_rgb(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    return np.stack(squares)


def _rgb(image: Any) -> Any:
    """As training images are read: turned as EXIF says, transparency on white."""
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow meets a tag of a wrong type with AttributeError, TypeError and others
        raise ValueError(
            f"images: damaged EXIF data in {getattr(image, 'filename', '') or 'an image'} ({error}); replace the file"
        ) from None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
