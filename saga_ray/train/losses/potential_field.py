"""Potential Field (arXiv 2405.18560): embeddings and proxies as charges that attract their class and repel all others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saga_ray.config import PotentialFieldConfig

CLOSEST_SHARE = 0.25
"""Below this share of delta the repulsion goes on as a straight line: finite force at distance 0."""


def attraction(distance: Tensor, alpha: float, delta: float) -> Tensor:
    """psi_att(d) = -(delta / d)^alpha, constant (no force) once closer than delta."""
    return -((distance.clamp_min(delta) / delta) ** -alpha)


def repulsion(distance: Tensor, alpha: float, delta: float) -> Tensor:
    """psi_rep(d) = (delta / d)^alpha - 1 while closer than delta, 0 (no force) beyond it.

    Ours: closer than c = delta / 4 it goes on along its tangent, so that the force stays finite where images of two
    classes coincide.
    """
    closest = CLOSEST_SHARE
    near = distance / delta
    slope = alpha * closest ** -(alpha + 1)
    return near.clamp(closest, 1.0) ** -alpha - 1 + slope * (closest - near).clamp_min(0)


class PotentialField(nn.Module):
    """Total potential of all charges: the embeddings of the batch and M proxies of every class.

    U = (1 / A) (sum_i Psi_{y_i}(z_i) + sum_{j,k} Psi_j(p_{j,k})), where the field of class c at a charge r is
    Psi_c(r) = sum of psi_att(|r - z|) over charges z of class c + sum of psi_rep(|r - z|) over the charges of other
    classes. Distances are Euclidean between vectors of length 1; gradients reach both ends of every distance.

    Where the paper's summaries are silent: a charge does not feel itself; the sums are divided by one number, the
    attractions A that the batch's images feel, so that the balance of all terms is the paper's and the images' part does
    not grow with the batch (the proxies' part among themselves grows with the number of classes); distances are measured in units of delta and the
    repulsion is shifted to end at 0, a constant factor and a constant; proxies are normalised wherever they are used;
    they start as random directions.
    """

    def __init__(self, num_classes: int, dim: int, config: PotentialFieldConfig, seed: int = 0) -> None:
        super().__init__()
        self.alpha, self.delta = config.alpha, config.delta
        # A generator of its own: the global one may be used by other threads.
        random = torch.randn(num_classes, config.proxies_per_class, dim, generator=torch.Generator().manual_seed(seed))
        self.proxies = nn.Parameter(F.normalize(random, dim=-1))

    def forward(self, embeddings_NE: Tensor, labels_N: Tensor) -> Tensor:
        """Total potential per attraction that an image feels.

        Args:
            embeddings_NE: of length 1.
            labels_N: class numbers.
        """
        num_classes, num_proxies, _ = self.proxies.shape
        proxies_ME = F.normalize(self.proxies, dim=-1).flatten(0, 1).to(embeddings_NE.dtype)
        charges_CE = torch.cat([embeddings_NE, proxies_ME])
        classes = torch.arange(num_classes, device=labels_N.device).repeat_interleave(num_proxies)
        classes_C = torch.cat([labels_N, classes])
        distance_CC = _distances(charges_CE)
        same_CC = classes_C[:, None] == classes_C[None, :]
        potential_CC = torch.where(
            same_CC,
            attraction(distance_CC, self.alpha, self.delta),
            repulsion(distance_CC, self.alpha, self.delta),
        )
        potential_CC = potential_CC.masked_fill(torch.eye(len(charges_CE), dtype=torch.bool, device=labels_N.device), 0)
        num_attractions = same_CC[: len(embeddings_NE)].sum() - len(embeddings_NE)
        return potential_CC.sum() / num_attractions


def _distances(unit_CE: Tensor) -> Tensor:
    """Euclidean distances between vectors of length 1, with gradient 0 where they coincide."""
    squared_CC = (2 - 2 * unit_CE @ unit_CE.T).clamp_min(0)
    # The root has no derivative at 0; rounding leaves about 1e-7 there.
    tiny = 4 * torch.finfo(unit_CE.dtype).eps
    apart_CC = ~(squared_CC <= tiny)  # written so that NaN stays NaN
    return torch.where(apart_CC, squared_CC.where(apart_CC, torch.ones_like(squared_CC)).sqrt(), 0.0)
