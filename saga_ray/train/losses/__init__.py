"""Metric losses by name, each from (embeddings, labels) of the whole batch to a scalar; their proxies are their own parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saga_ray.config import LossConfig
from saga_ray.train.losses.potential_field import PotentialField


def build_metric_loss(config: LossConfig, num_classes: int, dim: int, seed: int) -> nn.Module | None:
    """The loss named by `loss.metric`, with new parameters that depend on `seed` alone; None if there is nothing to train with it.

    Returns:
        A module called with embeddings (N, E) of length 1 and labels (N,) in 0 .. num_classes - 1.
    """
    if config.metric == "none" or config.weights.metric == 0:
        return None
    if config.metric == "potential-field":
        return PotentialField(num_classes, dim, config.potential_field, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _LibraryLoss(config.metric, num_classes, dim)


class _LibraryLoss(nn.Module):
    """A loss of pytorch-metric-learning at that library's defaults, which are its papers' values."""

    def __init__(self, name: str, num_classes: int, dim: int) -> None:
        super().__init__()
        # Imported here: the library takes seconds to load.
        from pytorch_metric_learning import distances, losses, miners

        self.miner: nn.Module | None = None
        if name == "multi-similarity":
            self.loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
            self.miner = miners.MultiSimilarityMiner(epsilon=0.1)
        else:
            self.loss = {
                "proxy-anchor": lambda: losses.ProxyAnchorLoss(num_classes, dim, margin=0.1, alpha=32),
                "infonce": lambda: losses.NTXentLoss(temperature=0.07),
                "contrastive": lambda: losses.ContrastiveLoss(
                    pos_margin=1, neg_margin=0.5, distance=distances.CosineSimilarity()
                ),
                "triplet": lambda: losses.TripletMarginLoss(margin=0.05),
                "proxy-nca": lambda: losses.ProxyNCALoss(num_classes, dim, softmax_scale=1),
                "circle": lambda: losses.CircleLoss(m=0.4, gamma=80),
                "arcface": lambda: losses.ArcFaceLoss(num_classes, dim, margin=28.6, scale=64),
            }[name]()

    def forward(self, embeddings_NE: Tensor, labels_N: Tensor) -> Tensor:
        mined = None if self.miner is None else self.miner(embeddings_NE, labels_N)
        return self.loss(embeddings_NE, labels_N, mined)
