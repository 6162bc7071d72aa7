import math

import pytest
import torch
from torch.nn import functional as F

from saga_ray.config import PotentialFieldConfig
from saga_ray.train.losses.potential_field import PotentialField, attraction, repulsion

ALPHA, DELTA = 2.0, 0.5


def _at(*degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def _loss(proxies_CME: torch.Tensor, alpha: float = ALPHA, delta: float = DELTA) -> PotentialField:
    classes, proxies, dim = proxies_CME.shape
    loss = PotentialField(classes, dim, PotentialFieldConfig(alpha=alpha, delta=delta, proxies_per_class=proxies))
    loss.proxies.data = proxies_CME
    return loss.double()


def test_attraction_is_minus_the_power_law_and_flat_below_delta() -> None:
    distance = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    expected = [-1.0, -1.0, -0.25, -0.0625]  # -(0.5 / d)^2
    assert attraction(distance, ALPHA, DELTA).tolist() == pytest.approx(expected)


def test_repulsion_is_the_power_law_and_flat_beyond_delta() -> None:
    distance = torch.tensor([0.125, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = [15.0, 3.0, 0.0, 0.0]  # (0.5 / d)^2 - 1
    assert repulsion(distance, ALPHA, DELTA).tolist() == pytest.approx(expected)


def test_forces_are_those_of_the_paper_where_it_has_them_and_finite_elsewhere() -> None:
    distance = torch.tensor([0.0, 0.06, 0.2, 0.4, 0.7, 1.5], dtype=torch.float64, requires_grad=True)
    (pull,) = torch.autograd.grad(attraction(distance, ALPHA, DELTA).sum(), distance)
    (push,) = torch.autograd.grad(repulsion(distance, ALPHA, DELTA).sum(), distance)
    law = [ALPHA * DELTA**ALPHA / d ** (ALPHA + 1) for d in (0.2, 0.4, 0.7, 1.5)]
    assert pull.tolist() == pytest.approx([0, 0, 0, 0, law[2], law[3]])
    # Below delta / 4 = 0.125 the force stays that at 0.125.
    limit = ALPHA * DELTA**ALPHA / 0.125 ** (ALPHA + 1)
    assert push.tolist() == pytest.approx([-limit, -limit, -law[0], -law[1], 0, 0])


def test_loss_of_two_images_and_two_proxies_worked_by_hand() -> None:
    # Class 0: image at 0 degrees, proxy at 60. Class 1: image at 20, proxy at 180.
    loss = _loss(torch.stack([_at(60.0), _at(180.0)]))
    value = loss(_at(0.0, 20.0), torch.tensor([0, 1]))
    near = (DELTA / _chord(20)) ** 2 - 1  # the two images, closer than delta (0.347)
    pulled = [-((DELTA / _chord(60)) ** 2), -((DELTA / _chord(160)) ** 2)]
    # Image 0 and proxy 1 (180), image 1 and proxy 0 (40 degrees, 0.684), the proxies (120): farther than delta, nothing.
    # Every distance is felt from both ends; each image feels one attraction, that of its proxy.
    assert value.item() == pytest.approx(2 * (near + sum(pulled)) / 2)


def test_equals_the_definition_charge_by_charge() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings_NE = F.normalize(torch.randn(9, 3, generator=generator, dtype=torch.float64), dim=-1)
    labels_N = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
    loss = _loss(torch.randn(4, 2, 3, generator=generator, dtype=torch.float64), delta=0.9)
    charges = [(int(label), vector) for label, vector in zip(labels_N, embeddings_NE, strict=True)]
    charges += [(c, F.normalize(proxy, dim=-1)) for c, proxies in enumerate(loss.proxies) for proxy in proxies]
    total = 0.0
    for i, (label, here) in enumerate(charges):
        for j, (other, there) in enumerate(charges):
            if i != j:
                distance = (here - there).norm()
                psi = attraction if label == other else repulsion
                total += psi(distance, ALPHA, 0.9).item()
    attractions = 2 * (1 + 2) + 3 * (2 + 2) + 2 * (1 + 2) + 2 * (1 + 2)  # images of a class x (others + proxies)
    assert loss(embeddings_NE, labels_N).item() == pytest.approx(total / attractions)


def test_gradient_draws_its_class_together_and_pushes_others_apart() -> None:
    angles = torch.tensor([0.0, 50.0, 60.0], requires_grad=True)
    loss = _loss(torch.stack([_at(200.0), _at(270.0)]), alpha=4.0, delta=0.3)
    embeddings = torch.stack([torch.deg2rad(angles).cos(), torch.deg2rad(angles).sin()], dim=-1).double()
    loss(embeddings, torch.tensor([0, 0, 1])).backward()
    # Image 0 climbs towards 50; image 1 (class 0) and image 2 (class 1), 10 degrees apart, are driven apart.
    assert angles.grad[0] < 0 and angles.grad[1] > 0 and angles.grad[2] < 0


def test_coinciding_images_of_two_classes_give_a_finite_gradient() -> None:
    embeddings = _at(10.0, 10.0).requires_grad_()
    loss = _loss(torch.stack([_at(10.0), _at(10.0)]))
    value = loss(embeddings, torch.tensor([0, 1]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(embeddings.grad).all() and torch.isfinite(loss.proxies.grad).all()


def test_length_of_the_stored_proxies_does_not_matter() -> None:
    embeddings, labels = _at(0.0, 20.0), torch.tensor([0, 1])
    proxies = torch.stack([_at(60.0), _at(180.0)])
    torch.testing.assert_close(_loss(proxies)(embeddings, labels), _loss(proxies * 7)(embeddings, labels))
