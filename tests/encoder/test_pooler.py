import math

import pytest
import torch
from torch.nn import functional as F

from saga_ray.encoder.pooler import POOLERS, build_pooler

TOKENS_NTD = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", sorted(POOLERS))
@pytest.mark.parametrize("dim", [None, 8, 16, 24])
def test_embeddings_have_length_one_and_weights_sum_to_one(kind: str, dim: int | None) -> None:
    embedding_NE, weights_NT = build_pooler(kind, 16, dim)(TOKENS_NTD)
    assert embedding_NE.shape == (5, dim or 16) and weights_NT.shape == (5, 7)
    torch.testing.assert_close(embedding_NE.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(weights_NT.sum(dim=1), torch.ones(5))


def test_attention_equals_its_formula_written_out() -> None:
    pooler = build_pooler("attention", 16, 8)
    with torch.no_grad():
        pooler.query.normal_()
        pooler.key.normal_()
    embedding_NE, weights_NT = pooler(TOKENS_NTD)
    for n, x_TD in enumerate(TOKENS_NTD):
        weights_T = torch.softmax(pooler.query @ pooler.key @ x_TD.T / math.sqrt(16), dim=0)
        pooled_E = pooler.projection.weight @ (weights_T @ x_TD) + pooler.projection.bias
        torch.testing.assert_close(weights_NT[n], weights_T)
        torch.testing.assert_close(embedding_NE[n], pooled_E / pooled_E.norm())


def test_attention_starts_at_the_mean_and_all_of_it_can_learn() -> None:
    pooler = build_pooler("attention", 16, None)
    embedding_NE, weights_NT = pooler(TOKENS_NTD)
    mean_NE, _ = build_pooler("mean", 16, None)(TOKENS_NTD)
    assert F.cosine_similarity(embedding_NE, mean_NE).min() > 0.99
    assert (weights_NT * 7 - 1).abs().max() < 0.1
    (embedding_NE * torch.randn(embedding_NE.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(value.grad.any() for value in pooler.parameters())


def test_a_narrower_embedding_keeps_angles_of_the_tokens_it_can_hold() -> None:
    for kind in ("mean", "attention"):
        weight = build_pooler(kind, 16, 8).projection.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)


def test_max_weights_name_the_winning_tokens() -> None:
    tokens_NTD = torch.zeros(1, 3, 4)
    tokens_NTD[0, 1, :3] = 1.0
    tokens_NTD[0, 2, 3] = 1.0
    _, weights_NT = build_pooler("max", 4, None)(tokens_NTD)
    assert weights_NT.tolist() == [[0.0, 0.75, 0.25]]


def test_new_parameters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    first = build_pooler("attention", 16, 8, seed=3).state_dict()
    state = torch.get_rng_state()
    second = build_pooler("attention", 16, 8, seed=3).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["query"], build_pooler("attention", 16, 8, seed=4).query)
