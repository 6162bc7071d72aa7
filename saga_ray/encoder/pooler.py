"""From visual tokens to one embedding: mean, max, or the published attention pooler with one learned query."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MeanPooler(nn.Module):
    """Mean of the tokens, projected if the embedding is narrower or wider, l2-normalised."""

    kind = "mean"

    def __init__(self, width: int, dim: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.projection = _projection(width, dim, generator)

    def forward(self, tokens_NTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (N, E), of length 1, and the equal weights (N, T)."""
        num, length, _ = tokens_NTD.shape
        embedding_NE = F.normalize(self.projection(tokens_NTD.mean(dim=1)), dim=-1)
        return embedding_NE, tokens_NTD.new_full((num, length), 1.0 / length)


class MaxPooler(nn.Module):
    """Largest value of every channel over the tokens; a token's weight is the share of channels that it wins."""

    kind = "max"

    def __init__(self, width: int, dim: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.projection = _projection(width, dim, generator)

    def forward(self, tokens_NTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (N, E), of length 1, and the weights (N, T)."""
        num, length, width = tokens_NTD.shape
        largest_ND, winner_ND = tokens_NTD.max(dim=1)
        wins_NT = tokens_NTD.new_zeros(num, length).scatter_add_(
            1, winner_ND, tokens_NTD.new_full((num, width), 1.0 / width)
        )
        return F.normalize(self.projection(largest_ND), dim=-1), wins_NT


class AttentionPooler(nn.Module):
    """One learned query looks at the tokens: weights = softmax(q W_k X^T / sqrt D), weighted sum, linear, l2 (SAGA, section 3.1).

    Starts at the mean-pooled embedding: W_k is the identity and q is small (not zero, or W_k would get no gradient), so the
    weights start almost equal; the linear map starts as the identity, or as orthonormal rows if the width changes.
    """

    kind = "attention"
    initial_query_std = 0.02

    def __init__(self, width: int, dim: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width, generator=generator) * self.initial_query_std)
        self.key = nn.Parameter(torch.eye(width))
        self.projection = nn.utils.skip_init(nn.Linear, width, dim or width)
        _start_orthonormal(self.projection, generator)

    def log_weights(self, tokens_NTD: Tensor) -> Tensor:
        """Logarithm of the weights, (N, T), of tokens in any precision: a tower on a GPU gives bfloat16."""
        logits_NT = tokens_NTD.to(self.query.dtype) @ (self.query @ self.key) / math.sqrt(tokens_NTD.shape[-1])
        return logits_NT.to(torch.promote_types(logits_NT.dtype, torch.float32)).log_softmax(dim=-1)

    def forward(self, tokens_NTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (N, E), of length 1, and the weights (N, T), which sum to 1."""
        weights_NT = self.log_weights(tokens_NTD).exp()
        pooled_ND = (weights_NT.to(tokens_NTD.dtype)[:, :, None] * tokens_NTD).sum(dim=1)
        return F.normalize(self.projection(pooled_ND), dim=-1), weights_NT


POOLERS: dict[str, type[nn.Module]] = {kind.kind: kind for kind in (MeanPooler, MaxPooler, AttentionPooler)}


def build_pooler(kind: str, width: int, dim: int | None, seed: int = 0) -> nn.Module:
    """A pooler whose new parameters depend on `seed` alone."""
    return POOLERS[kind](width, dim, torch.Generator().manual_seed(seed))


def _projection(width: int, dim: int | None, generator: torch.Generator) -> nn.Module:
    if dim is None or dim == width:
        return nn.Identity()
    projection = nn.utils.skip_init(nn.Linear, width, dim)
    _start_orthonormal(projection, generator)
    return projection


def _start_orthonormal(projection: nn.Linear, generator: torch.Generator) -> None:
    nn.init.zeros_(projection.bias)
    if projection.in_features == projection.out_features:
        nn.init.eye_(projection.weight)
    else:
        nn.init.orthogonal_(projection.weight, generator=generator)
