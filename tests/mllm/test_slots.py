"""Slots for GPUs, fused layers, attention in two parts and the head in closed form: each equals its slow twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from saga_ray.bench.random_mllm import MLLMShape, random_mllm
from saga_ray.mllm.attention import NewRows, PrefixMemory, ResponseMemory
from saga_ray.mllm.exact import exact_float64
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.fused import fuse, linear, unfuse
from saga_ray.mllm.gradients import Policy, token_log_probs
from saga_ray.mllm.head import MAX_LOGITS, head_log_probs
from saga_ray.mllm.nucleus import draw_on_device
from saga_ray.mllm.sampling import draw, sample, uniform_numbers
from saga_ray.mllm.slots import SlotSampler, fits_slots
from saga_ray.mllm.two_part import can_be_split
from saga_ray.rl.grpo import policy_loss_sum

SHAPE = MLLMShape(32, 3, 4, 2, 16, 64, 96, 3, 32, 64, 2, (0, 1, 2))


@pytest.fixture(scope="module")
def mllm() -> FrozenMLLM:
    mllm = dataclasses.replace(random_mllm(SHAPE, torch.device("cpu"), torch.float64), split=False)
    exact_float64(mllm.model)
    mllm.model.lm_head.weight[0] *= 2  # answers end, sooner or later
    return mllm


@pytest.fixture(scope="module")
def layout(mllm: FrozenMLLM) -> Layout:
    texts = ("t6 t7<|vision_start|>", "<|vision_end|><|vision_start|>", "<|vision_end|>t8 t9")
    return mllm.layout(texts, (2, 2))


@pytest.fixture(scope="module")
def prefix(mllm: FrozenMLLM, layout: Layout) -> Prefix:
    return mllm.prefill(tokens(5), layout, mllm.constant_prefix(layout))


@pytest.fixture
def unfused(mllm: FrozenMLLM) -> Iterator[FrozenMLLM]:
    yield mllm
    unfuse(mllm)


def tokens(num_pairs: int) -> Tensor:
    return torch.randn(num_pairs, 2, 4, 4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("num_slots", [2, 7])
@pytest.mark.parametrize("most", [1024, 90, 2])  # the whole vocabulary, usually enough, never enough
def test_slots_write_what_the_plain_loop_writes(
    mllm: FrozenMLLM, layout: Layout, prefix: Prefix, top_p: float, num_slots: int, most: int
) -> None:
    settings = {"temperature": 0.8, "top_p": top_p}
    sampler = SlotSampler(mllm, layout, num_slots, 3, 20, graphs=False, steps=4, bucket=8, most=most, **settings)
    for micro_batch in (0, 1):  # the second time in used slots
        uniform = uniform_numbers(0, micro_batch, range(5), 3, 20)
        want, got = sample(mllm, layout, prefix, uniform, **settings), sampler(prefix, uniform)
        assert torch.equal(got.token_ids_SR, want.token_ids_SR)
        assert torch.equal(got.support_SR, want.support_SR) and torch.equal(got.ended_S, want.ended_S)
        torch.testing.assert_close(got.log_probs_S, want.log_probs_S, rtol=1e-11, atol=1e-12)
        assert (
            0 < want.ended_S.sum() < 15 and len(set(want.num_tokens_S.tolist())) > 3
        )  # ends lie apart, some never come


def test_an_answer_does_not_depend_on_the_slots_beside_it(mllm: FrozenMLLM, layout: Layout, prefix: Prefix) -> None:
    settings = {"temperature": 0.8, "top_p": 0.9, "graphs": False, "steps": 3, "bucket": 8}
    uniform = uniform_numbers(0, 0, range(5), 3, 20)
    together = SlotSampler(mllm, layout, 2, 3, 20, **settings)(prefix, uniform)
    alone = SlotSampler(mllm, layout, 1, 3, 20, **settings)
    for pair in range(5):
        own = Prefix([(k[pair : pair + 1], v[pair : pair + 1]) for k, v in prefix.keys_values], [])
        got = alone(own, uniform[pair : pair + 1]).token_ids_SR
        want = together.token_ids_SR[3 * pair : 3 * pair + 3, : got.shape[1]]
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", {"full_attention": "default", "sliding_attention": "dynamic"}])
def test_angles_that_depend_on_the_length_do_not_fit_slots(
    mllm: FrozenMLLM, kind: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fits_slots(mllm)
    monkeypatch.setattr(mllm.decoder.rotary_emb, "rope_type", kind)
    assert not fits_slots(mllm)


@pytest.mark.parametrize(("capability", "fits"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_attention_in_two_parts_needs_an_ampere_and_16_bits(
    capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert can_be_split(gpu, torch.float16) == can_be_split(gpu, torch.bfloat16) == fits
    assert not can_be_split(gpu, torch.float32) and can_be_split(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_a_token_drawn_on_the_device_is_the_token_drawn(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 50, generator=generator)
    logits[:, 7] = logits[:, 9]  # a tie, which may lie at the edge
    logits[:, 3] = -torch.inf
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    want = draw(logits, uniform, top_p)
    *got, wide = draw_on_device(logits, uniform, top_p, 50)
    assert not wide.any()
    assert torch.equal(got[0], want[0]) and torch.equal(got[2], want[2])
    torch.testing.assert_close(got[1], want[1], rtol=1e-13, atol=1e-13)
    if top_p < 1:
        most = 3 if top_p < 0.5 else 8
        *few, wide = draw_on_device(logits, uniform, top_p, most)
        assert torch.equal(wide, want[2] >= most) and wide.any() and not wide.all()
        assert torch.equal(few[0][~wide], want[0][~wide])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_in_two_parts_equals_attention_over_both(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    query, key, value = random(6, 4, 5, 16), random(6, 2, 5, 16), random(6, 2, 5, 16)
    before = random(2, 2, 7, 16), random(2, 2, 7, 16)
    direction = random(6, 4, 5, 16).detach()
    found = []
    for split in (True, False):
        out = ResponseMemory([before], split=split).attend(0, NewRows(query, key, value, 0.25))
        found.append((out, *torch.autograd.grad((out * direction).sum(), (query, key, value, *before))))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14 if dtype == torch.float64 else 3e-6)
    constant = [tuple(x[:1].detach() for x in before)]
    got, want = (PrefixMemory(constant, split=s).attend(0, NewRows(query, key, value, 0.25)) for s in (True, False))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14 if dtype == torch.float64 else 3e-6)


def test_fused_layers_and_split_attention_give_the_same_prefix_and_gradient(
    unfused: FrozenMLLM, layout: Layout, prefix: Prefix
) -> None:
    mllm = dataclasses.replace(unfused, split=True)
    assert fuse(mllm, compiled=False)
    leaf = tokens(5).requires_grad_()
    fast = mllm.prefill(leaf, layout, mllm.constant_prefix(layout))
    unfuse(mllm)
    slow_leaf = tokens(5).requires_grad_()
    slow = unfused.prefill(slow_leaf, layout, unfused.constant_prefix(layout))
    for got, want, reference in zip(fast.keys_values, slow.keys_values, prefix.keys_values, strict=True):
        for a, b, c in zip(got, want, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
            assert torch.equal(b, c), "the library's layers are what they were"
    for found, start in ((fast, leaf), (slow, slow_leaf)):
        sum((k * v.detach()).sum() for k, v in found.made).backward()
        assert start.grad is not None
    torch.testing.assert_close(leaf.grad, slow_leaf.grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("num_rows", [1, 16, 65])
def test_few_rows_are_multiplied_as_many_are(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 1, 24, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((40, 24), (40,)))
    for each in (None, bias):
        got = linear(x, weight, each)
        torch.testing.assert_close(got, torch.nn.functional.linear(x, weight, each))
        assert got.is_contiguous(), "kernels of attention read rows"


def test_joining_takes_no_second_copy_of_the_weights(unfused: FrozenMLLM) -> None:
    fuse(unfused, compiled=False)
    layer = unfused.decoder.layers[0]
    whole = layer.joined_gate_up
    assert layer.mlp.up_proj.weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("replayed", [True, False])
def test_the_closed_form_of_the_head_equals_autograd(
    mllm: FrozenMLLM, top_p: float, replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_LOGITS, "cpu", 5 * SHAPE.vocabulary)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(13, SHAPE.hidden, generator=generator, dtype=torch.float64).requires_grad_()
    ids = torch.randint(6, SHAPE.vocabulary, (13,), generator=generator)
    support = torch.randint(1, SHAPE.vocabulary, (13,), generator=generator) if replayed else None
    weights = torch.randn(13, generator=generator, dtype=torch.float64)
    weights[3] = 0.0
    log_probs, grad = head_log_probs(mllm, hidden.detach(), ids, support, weights, 0.7, top_p)
    want = token_log_probs(mllm, hidden, ids, support, Policy(0.7, top_p))
    torch.testing.assert_close(log_probs, want.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        grad, torch.autograd.grad(policy_loss_sum(want, weights), hidden)[0], rtol=1e-11, atol=1e-12
    )
    assert head_log_probs(mllm, hidden.detach(), ids, support, None, 0.7, top_p)[1] is None
