"""Every supported family of MLLMs under the same laws, on small models of its own with every parameter filled.

What the tests measure is recorded (`record_property`); `python -m tests.mllm.capabilities` writes it into the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.models.smolvlm.processing_smolvlm as smolvlm_processing
from PIL import Image
from transformers import AutoModelForImageTextToText

from saga_ray.config import MLLMConfig
from saga_ray.mllm.attention import ResponseMemory
from saga_ray.mllm.frozen import FrozenMLLM, Layout
from saga_ray.mllm.gradients import Policy, library_hidden, naive_score, score_shared
from saga_ray.mllm.loading import load_mllm
from saga_ray.mllm.prompt import Prompt, prompt_texts, request_messages
from saga_ray.mllm.sampling import Completions, given, sample, uniform_numbers
from tests.helpers.scoring import relative
from tests.helpers.small_families import HIDDEN, IMAGE_SIZE, SMALL_FAMILIES, small_family_folder

# Of several lengths; the second is shorter than a window, the third longer than a pair's images.
ANSWERS = (
    "hooked bill, barred wing: yes",
    "no",
    '{"bill":"straight","wing":"plain","bill":"hooked","same":"no"}',
    "plain",
)
PROMPT = Prompt("ornithologist", "bird", {"bill": None}, "same", "generic")
POLICY = Policy(1.0, 1.0)


class Small:
    """A family's small model in both precisions, and the same for all: layout, tokens of 3 pairs, answers, weights."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, small_family_folder(folder / name, name)

    @cached_property
    def single(self) -> FrozenMLLM:
        return load_mllm(MLLMConfig(path=str(self.folder), dtype="float32"))

    @cached_property
    def double(self) -> FrozenMLLM:
        return load_mllm(MLLMConfig(path=str(self.folder), dtype="float64"))

    def layout(self, mllm: FrozenMLLM) -> Layout:
        """Few words, longer than Gemma's window before and between the images."""
        marks = mllm.marks
        before, between, after = "the bill and wing of two birds:", " and then the other: ", " same?"
        return mllm.layout(
            (before + marks.opening, marks.closing + between + marks.opening, marks.closing + after), (2, 2)
        )

    def tokens(self, mllm: FrozenMLLM, num_pairs: int = 3) -> torch.Tensor:
        shape = (num_pairs, 2, mllm.num_levels, 4, HIDDEN)
        return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(mllm.dtype)


def answers_of(mllm: FrozenMLLM, num_pairs: int) -> tuple[Completions, torch.Tensor]:
    """The same four answers about every pair, in another order for each, and weights of their tokens."""
    turned = [ANSWERS[(i + pair) % 4] for pair in range(num_pairs) for i in range(4)]
    completions = given(mllm, turned)
    weights_S = torch.tensor([1.5, -0.5, -0.7, -0.3], dtype=torch.float64).repeat(num_pairs)
    return completions, weights_S[:, None] * (completions.token_ids_SR >= 0)


def shared_of(mllm: FrozenMLLM, layout: Layout, tokens: torch.Tensor, **more: Any) -> Any:
    completions, weights_SR = answers_of(mllm, len(tokens))
    tokens = tokens.clone().requires_grad_()
    prefix = mllm.prefill(tokens, layout, mllm.constant_prefix(layout))
    options = {"pairs": list(range(len(tokens))), "replay_support": False} | more
    return score_shared(mllm, layout, prefix, tokens, completions, weights_SR, POLICY, **options)


def naive_of(mllm: FrozenMLLM, layout: Layout, tokens: torch.Tensor) -> Any:
    completions, weights_SR = answers_of(mllm, len(tokens))
    pairs = list(range(len(tokens)))
    return naive_score(mllm, layout, tokens, completions, weights_SR, POLICY, pairs=pairs, replay_support=False)


@pytest.fixture(scope="module", params=SMALL_FAMILIES)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    with pytest.MonkeyPatch.context() as patch:
        # For videos only, and not among our packages; without it the library refuses the whole processor.
        patch.setattr(smolvlm_processing, "num2words", str)
        yield Small(request.param, tmp_path_factory.mktemp("families"))


@pytest.fixture
def record(small: Small, record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    record_property("family", small.name)
    return record_property


@torch.no_grad()
def test_native_tokens_injected_give_the_native_logits_under_the_native_prompt(
    small: Small, record: Callable[[str, object], None]
) -> None:
    mllm = small.single
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (IMAGE_SIZE,) * 2 + (3,), dtype=np.uint8)) for _ in range(2)]
    rendered = mllm.processor.apply_chat_template(request_messages(PROMPT), add_generation_prompt=True, tokenize=False)
    inputs = mllm.processor(
        text=[rendered + ANSWERS[0]], images=[pictures], return_tensors="pt", add_special_tokens=False,
        **SMALL_FAMILIES[small.name].crops_off,
    )  # fmt: skip
    layout = mllm.layout(prompt_texts(PROMPT, mllm.tokenizer, mllm.marks), (2, 2))
    prompt = layout.prompt_ids(mllm.model.config.image_token_id)
    ids_1C = inputs["input_ids"]
    assert ids_1C[0, : len(prompt)].tolist() == prompt, "our prompt is the one that the processor writes for one crop"
    # The text before an answer is not what decides, so nothing may hide behind it: all rows are compared.
    native_CV = mllm.model(**inputs).logits[0]
    levels_L2TD = native_tokens(mllm, inputs)
    assert levels_L2TD.shape == (mllm.num_levels, 2, 4, HIDDEN)

    rows = mllm.answer_positions(layout, ids_1C.shape[1] - len(prompt) + 1)[:, 1:]
    positions_3C = torch.cat((layout.positions_3C, rows), dim=1)
    injected_CV = mllm.model.lm_head(library_hidden(mllm, ids_1C, positions_3C, levels_L2TD))[0]
    assert relative(injected_CV, native_CV) < 1e-6

    prefix = mllm.prefill(levels_L2TD.permute(1, 0, 2, 3)[None], layout, mllm.constant_prefix(layout))
    fed = ids_1C[:, len(prompt) - 1 : -1]
    hidden = mllm.run(mllm.embed(fed), mllm.answer_positions(layout, fed.shape[1]), ResponseMemory(prefix.keys_values))
    error = relative(mllm.model.lm_head(hidden)[0], native_CV[len(prompt) - 1 : -1])
    record("native_logits", error)
    record("tested", told(mllm))
    assert error < 1e-5


def told(mllm: FrozenMLLM) -> str:
    """The small model in a few words."""
    text = mllm.model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or []
    windows = f", {kinds.count('sliding_attention')} with a window of {getattr(text, 'sliding_window', None)}"
    experts = f", {text.num_local_experts} experts" if getattr(text, "num_local_experts", None) else ""
    heads = f"{text.num_attention_heads}/{text.num_key_value_heads} heads"
    return (
        f"{text.model_type}, {text.num_hidden_layers} layers{windows if 'sliding_attention' in kinds else ''}{experts}, "
        f"{heads}, width {text.hidden_size}"
    )


def native_tokens(mllm: FrozenMLLM, inputs: Any) -> torch.Tensor:
    """(L, 2, T, D) as the library's own tower makes them; what is no token of an image is left out."""
    of_text = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    base = mllm.model.model
    vision = base.get_image_features(**{k: v for k, v in inputs.items() if k not in of_text}, return_dict=True)
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = None  # left behind by the library's own forward
    levels = [vision.pooler_output, *(getattr(vision, "deepstack_features", None) or [])]
    return torch.stack(
        [torch.cat([part.reshape(-1, HIDDEN) for part in level]).view(2, -1, HIDDEN)[:, :4] for level in levels]
    )


@pytest.mark.parametrize(("precision", "bound"), [("single", 1e-5), ("double", 1e-10)])
def test_the_gradient_over_a_shared_prefix_equals_the_naive_twin(
    small: Small, precision: str, bound: float, record: Callable[[str, object], None]
) -> None:
    mllm: FrozenMLLM = getattr(small, precision)
    layout, tokens = small.layout(mllm), small.tokens(mllm)
    shared, naive = shared_of(mllm, layout, tokens), naive_of(mllm, layout, tokens)
    got, want = shared.token_grads_P2LTD, naive.token_grads_P2LTD
    assert bool((want.abs().amax(dim=-1) > 0).all()), "every token of every level and image takes part"
    errors = [relative(got[p, i, n], want[p, i, n]) for p in range(3) for i in range(2) for n in range(mllm.num_levels)]
    record(f"gradient_{precision}", max(errors))
    record("levels", mllm.num_levels)
    assert max(errors) < bound
    assert relative(shared.log_probs_SR, naive.log_probs_SR) < bound


def test_a_pair_does_not_depend_on_what_shares_its_batch(small: Small) -> None:
    mllm = small.double
    layout, tokens = small.layout(mllm), small.tokens(mllm)
    whole = shared_of(mllm, layout, tokens)
    chosen = shared_of(mllm, layout, tokens, pairs=[2, 0])
    assert relative(chosen.log_probs_SR, whole.log_probs_SR.view(3, 4, -1)[[2, 0]].flatten(0, 1)) < 1e-12
    assert relative(chosen.token_grads_P2LTD[[0, 2]], whole.token_grads_P2LTD[[0, 2]]) < 1e-12
    first = shared_of(mllm, layout, tokens[:1])
    assert relative(first.token_grads_P2LTD, whole.token_grads_P2LTD[:1]) < 1e-12
    completions, weights_SR = answers_of(mllm, 1)
    total = torch.zeros_like(first.token_grads_P2LTD)
    for row in range(4):  # every answer alone, unpadded
        length = int(completions.num_tokens_S[row])
        own = slice(row, row + 1)
        one = Completions(
            completions.token_ids_SR[own, :length],
            completions.support_SR[own, :length],
            completions.log_probs_S[own],
            completions.ended_S[own],
        )
        leaf = tokens[:1].clone().requires_grad_()
        prefix = mllm.prefill(leaf, layout, mllm.constant_prefix(layout))
        weights = weights_SR[row : row + 1, :length]
        total += score_shared(
            mllm, layout, prefix, leaf, one, weights, POLICY, pairs=[0], replay_support=False
        ).token_grads_P2LTD
    assert relative(total, first.token_grads_P2LTD) < 1e-12


def test_answers_are_sampled_from_the_policy_that_is_scored(small: Small) -> None:
    """The decode loop's log-probabilities are those of the library's forward over the whole sequence."""
    mllm = small.double
    layout, tokens = small.layout(mllm), small.tokens(mllm, 2)
    with torch.no_grad():
        prefix = mllm.prefill(tokens, layout, mllm.constant_prefix(layout))
    uniform = uniform_numbers(0, 0, [0, 1], 3, 12)
    written = sample(mllm, layout, prefix, uniform, temperature=1.0, top_p=1.0)
    assert int(written.num_tokens_S.sum()) > 12
    weights_SR = torch.ones(written.token_ids_SR.shape, dtype=torch.float64)
    twin = naive_score(mllm, layout, tokens, written, weights_SR, POLICY, pairs=[0, 1], replay_support=False)
    assert relative(twin.log_probs_SR.sum(dim=1), written.log_probs_S) < 1e-10
    banned = mllm.family.banned_ids(mllm.model.config)
    assert banned
    assert not np.isin(written.token_ids_SR.numpy(), banned).any()


def test_captured_attention_equals_eager_attention_at_every_layer(
    small: Small, record: Callable[[str, object], None]
) -> None:
    mllm = small.single
    layout, tokens = small.layout(mllm), small.tokens(mllm, 1)
    completions, _ = answers_of(mllm, 1)
    eager = AutoModelForImageTextToText.from_pretrained(small.folder, dtype=torch.float32, attn_implementation="eager")
    prompt = layout.prompt_ids(mllm.model.config.image_token_id)
    rows = [([0, 3], [1]), ([], [0]), ([2, 9, 15], [5, 16]), ([1], [])]
    errors = []
    for layer in range(mllm.num_layers):
        got = shared_of(mllm, layout, tokens, capture_layer=layer, rows=rows).attention
        for answer in (0, 2):
            length = int(completions.num_tokens_S[answer])
            ids_1C = torch.tensor([prompt + completions.token_ids_SR[answer, :length].tolist()])
            positions = torch.cat((layout.positions_3C, mllm.answer_positions(layout, length + 1)[:, 1:]), dim=1)
            with torch.no_grad():
                weights = library_attention(mllm, eager.eval(), ids_1C, positions, tokens[0].transpose(0, 1))[layer]
            for image, (start, stop) in enumerate(layout.image_columns):
                own = weights[[len(prompt) - 1 + row for row in rows[answer][image]], start:stop]
                seen = own.sum(dim=1) > 0  # a window may leave nothing of an image
                want = (own[seen] / own[seen].sum(dim=1, keepdim=True)).sum(dim=0)
                errors.append(float((got[answer][image] - want).abs().max()))
                assert bool(seen.all()) or not seen.any() or layer != mllm.full_layer(layer)
    record("attention", max(errors))
    assert max(errors) < 3e-6
    assert all(part is None for part in (got[1][0], got[3][1]))


def library_attention(
    mllm: FrozenMLLM, eager: Any, ids_1C: torch.Tensor, positions_3C: torch.Tensor, levels_L2TD: torch.Tensor
) -> list[torch.Tensor]:
    """Head means (C, C) of every layer by the library's own eager attention."""
    out = eager.model(
        input_ids=ids_1C,
        position_ids=mllm.family.library_positions(positions_3C, 1),
        output_attentions=True,
        **mllm.family.library_inputs(eager, [[*level] for level in levels_L2TD], ids_1C),
    )
    return [weights[0].mean(dim=0) for weights in out.attentions]


def test_the_layer_that_teaches_sees_the_whole_prompt(small: Small) -> None:
    kinds = getattr(small.single.model.config.get_text_config(), "layer_types", None)
    layers = [small.single.full_layer(layer) for layer in range(small.single.num_layers)]
    if small.name == "gemma3":
        assert layers == [2, 2, 2, 2]
    else:
        assert layers == list(range(small.single.num_layers))
        assert set(kinds or ["full_attention"]) == {"full_attention"}


def test_nothing_of_the_model_has_a_gradient_or_changes(small: Small) -> None:
    mllm = small.single
    before = {name: x.clone() for name, x in mllm.model.state_dict().items()}
    layout, tokens = small.layout(mllm), small.tokens(mllm, 1)
    shared_of(mllm, layout, tokens)
    naive_of(mllm, layout, tokens)
    assert all(p.grad is None and not p.requires_grad for p in mllm.model.parameters())
    assert all(torch.equal(x, before[name]) for name, x in mllm.model.state_dict().items())
    assert getattr(mllm.model.model, "rope_deltas", None) is None
