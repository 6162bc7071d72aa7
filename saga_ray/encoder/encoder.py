"""Tower and pooler together: uint8 images to visual tokens, embedding and pooling weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saga_ray.config import RunConfig
from saga_ray.encoder.base import Tower
from saga_ray.encoder.build import build_tower
from saga_ray.encoder.pooler import build_pooler
from saga_ray.types import VisualTokens


@dataclass(frozen=True)
class Encoded:
    """What the encoder says of N images."""

    tokens: VisualTokens
    embedding_NE: Tensor
    """Of length 1."""
    weights_NT: Tensor
    """The pooler's weights over the tokens, summing to 1."""


class Encoder(nn.Module):
    """The network that is trained and kept; the pooler reads level 0 of the tokens."""

    def __init__(self, tower: Tower, pooler: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.pooler = pooler

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.tower.mean_C.device

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic on a GPU, unless the parameters are float64; without effect elsewhere."""
        on = self.device.type == "cuda" and self.tower.dtype == torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def encode_tokens(self, images_NHWC: Tensor) -> VisualTokens:
        """Visual tokens alone."""
        with self.autocast():
            return self.tower(images_NHWC)

    def pool(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Embedding (N, E) and weights (N, T) of given tokens, in the parameters' precision."""
        return self.pooler(tokens.tokens_NLTD[:, 0].to(self.tower.dtype))

    def forward(self, images_NHWC: Tensor) -> Encoded:
        """Encode uint8 images (N, H, W, 3) of one size."""
        tokens = self.encode_tokens(images_NHWC)
        return Encoded(tokens, *self.pool(tokens))


def build_encoder(config: RunConfig) -> Encoder:
    """The initial encoder of a run: the MLLM's own vision tower or one of timm, and a new pooler.

    Raises:
        ValueError: if mllm.path or encoder.* name nothing usable.
    """
    dtype = torch.float64 if config.mllm.dtype == "float64" else torch.float32
    tower = build_tower(config, dtype)
    tower.check_size(config.data.image_size)
    pooler = build_pooler(config.encoder.pooler, tower.width, config.encoder.dim, seed=config.seed)
    return Encoder(tower, pooler.to(dtype))
