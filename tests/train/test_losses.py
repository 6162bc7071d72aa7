from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from saga_ray.config import LossConfig
from saga_ray.train.losses import build_metric_loss

NAMES = [name for name in get_args(LossConfig.model_fields["metric"].annotation) if name != "none"]
EMBEDDINGS_NE = F.normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
LABELS_N = torch.arange(12) // 3


@pytest.mark.parametrize("name", NAMES)
def test_every_named_loss_gives_a_finite_gradient_to_all_that_can_learn(name: str) -> None:
    loss = build_metric_loss(LossConfig(metric=name), 4, 16, seed=0)
    embeddings_NE = EMBEDDINGS_NE.clone().requires_grad_()
    loss(embeddings_NE, LABELS_N).backward()
    assert torch.isfinite(embeddings_NE.grad).all() and embeddings_NE.grad.any()
    assert all(parameter.grad.any() for parameter in loss.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_steps_down_a_loss_draw_classes_together(name: str) -> None:
    loss = build_metric_loss(LossConfig(metric=name), 4, 16, seed=0)
    embeddings_NE = EMBEDDINGS_NE.clone().requires_grad_()
    optimizer = torch.optim.Adam([embeddings_NE, *loss.parameters()], lr=0.05)

    def contrast() -> float:
        unit = F.normalize(embeddings_NE.detach(), dim=-1)
        similar, same = unit @ unit.T, LABELS_N[:, None] == LABELS_N
        return float(similar[same].mean() - similar[~same].mean())

    before = contrast()
    for _ in range(60):
        optimizer.zero_grad()
        loss(F.normalize(embeddings_NE, dim=-1), LABELS_N).backward()
        optimizer.step()
    assert contrast() > before + 0.2


@pytest.mark.parametrize("name", ["potential-field", "proxy-anchor", "arcface"])
def test_new_parameters_depend_on_the_seed_alone(name: str) -> None:
    config = LossConfig(metric=name)
    torch.manual_seed(99)
    first = dict(build_metric_loss(config, 4, 16, seed=3).named_parameters())
    torch.manual_seed(7)
    second = dict(build_metric_loss(config, 4, 16, seed=3).named_parameters())
    other = dict(build_metric_loss(config, 4, 16, seed=4).named_parameters())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_no_metric_loss_without_a_name_or_a_weight() -> None:
    assert build_metric_loss(LossConfig(metric="none"), 4, 16, seed=0) is None
    assert build_metric_loss(LossConfig.model_validate({"weights": {"metric": 0.0}}), 4, 16, seed=0) is None
