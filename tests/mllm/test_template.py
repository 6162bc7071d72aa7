from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_ray.config import MLLMConfig
from saga_ray.mllm.answers import parse_answer
from saga_ray.mllm.filling import fill_in, given_in
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.gradients import Policy, naive_hidden, score_shared
from saga_ray.mllm.loading import load_mllm
from saga_ray.mllm.prompt import Prompt, load_prompt
from saga_ray.mllm.sampling import Completions, draw, uniform_numbers
from saga_ray.mllm.template import FED, Template
from tests.helpers.small_families import HIDDEN, small_family_folder
from tests.helpers.small_mllm import small_answers

TEXTS = ("<|im_start|>user\nbill wing<|vision_start|>", "<|vision_end|>and<|vision_start|>", "<|vision_end|>json\n")
OPEN = Prompt(
    "expert", "jet", {"nose": ("long", "long and slender", "V-shaped"), "livery": None, "no. of doors": ("2", "12")},
    "same_variant", "structured", answers="template", value_tokens=3,
)  # fmt: skip
"""Values that begin alike, one whose words are left open, and letters that the small tokenizer has never seen together."""


@pytest.fixture(scope="module")
def mllm(folder: Path) -> FrozenMLLM:
    return load_mllm(MLLMConfig(path=str(folder), dtype="float64"))


@pytest.fixture(scope="module")
def small(folder: Path) -> Prompt:
    return replace(load_prompt("demo", "structured", folder), answers="template")


def asked(mllm: FrozenMLLM, num_pairs: int = 2) -> tuple[Layout, Prefix, torch.Tensor]:
    layout = mllm.layout(TEXTS, (2, 2))
    tokens = torch.randn(num_pairs, 2, 4, 4, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return layout, mllm.prefill(tokens.requires_grad_(), layout, mllm.constant_prefix(layout)), tokens


def filled(
    mllm: FrozenMLLM, template: Template, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, group: int = 4
) -> Completions:
    layout, prefix, _ = asked(mllm)
    numbers = uniform_numbers(seed, 0, range(2), group, template.longest)
    return fill_in(mllm, layout, prefix, numbers, template, temperature=temperature, top_p=top_p)


def texts_of(mllm: FrozenMLLM, completions: Completions) -> list[str]:
    return [mllm.tokenizer.decode([i for i in ids if i >= 0][:-1]) for ids in completions.token_ids_SR.tolist()]


def one_by_one(
    mllm: FrozenMLLM, template: Template, numbers: np.ndarray, temperature: float, top_p: float
) -> tuple[list[list[int]], list[float]]:
    """The slow obvious version: every answer alone, token by token, each time through the library's whole forward."""
    layout, _, tokens = asked(mllm)
    prompt = torch.tensor(layout.prompt_ids(mllm.model.config.image_token_id))
    rows, log_probs = [], []
    for pair, answer in product(range(2), range(numbers.shape[1])):
        walk, ids, total, drawn = template.walk(), [], 0.0, None
        while not ids or ids[-1] not in mllm.end_ids:
            step = walk.send(drawn)
            if isinstance(step, list):
                ids, drawn = ids + step, None
                continue
            with torch.no_grad():
                hidden = naive_hidden(mllm, layout, prompt, tokens[pair], torch.tensor([[*ids, 0]]))[:, -1]
            logits = mllm.logits(hidden, temperature)
            logits[:, ~template.table_AV[step]] = -torch.inf
            uniform = torch.tensor([numbers[pair, answer, len(ids)]])
            new, log_prob, _ = draw(logits, uniform, top_p)
            drawn = int(new)
            ids, total = [*ids, drawn], total + float(log_prob)
        rows.append(ids)
        log_probs.append(total)
    return rows, log_probs


@pytest.mark.parametrize(("which", "temperature", "top_p"), [("small", 1.0, 1.0), ("open", 1.5, 0.8)])
def test_blocks_write_what_a_token_by_token_sampler_writes(
    mllm: FrozenMLLM, small: Prompt, which: str, temperature: float, top_p: float
) -> None:
    template = Template(mllm, small if which == "small" else OPEN)
    ours = filled(mllm, template, temperature, top_p, group=2)
    numbers = uniform_numbers(0, 0, range(2), 2, template.longest)
    rows, log_probs = one_by_one(mllm, template, numbers, temperature, top_p)
    assert [[i for i in ids if i >= 0] for ids in ours.token_ids_SR.tolist()] == rows
    assert ours.log_probs_S.tolist() == pytest.approx(log_probs, rel=1e-9)
    assert len({len(row) for row in rows}) > 1 or which == "small", "rows of different lengths stand side by side"


def test_all_answers_have_probability_one_together_and_their_scores_mean_zero(mllm: FrozenMLLM, small: Prompt) -> None:
    """Exact enumeration: sum pi = 1 and sum pi grad log pi = 0 hold only if log pi is taken over the right sets."""
    template, answers = Template(mllm, small), small_answers()
    layout, prefix, tokens = asked(mllm)
    completions = given_in(template, answers * 2, mllm.device)
    common = {"pairs": [0, 1], "replay_support": False, "keep_graph": True}
    zeros_SR = torch.zeros(completions.token_ids_SR.shape, dtype=torch.float64)
    scored = score_shared(mllm, layout, prefix, None, completions, zeros_SR, Policy(0.7, 1.0), **common)
    probability_S = scored.log_probs_SR.sum(dim=1).exp()
    assert probability_S.view(2, -1).sum(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    weights_SR = probability_S[:, None].expand(zeros_SR.shape)
    mean = score_shared(mllm, layout, prefix, tokens, completions, weights_SR, Policy(0.7, 1.0), **common)
    half_SR = weights_SR * (torch.arange(64) % 32 < 16)[:, None]
    half = score_shared(mllm, layout, prefix, tokens, completions, half_SR, Policy(0.7, 1.0), **common)
    assert float(mean.token_grads_P2LTD.norm()) < 1e-10 * float(half.token_grads_P2LTD.norm())


def test_fed_tokens_have_probability_one_and_sampled_log_probs_are_replayed(mllm: FrozenMLLM) -> None:
    template = Template(mllm, OPEN)
    layout, prefix, _ = asked(mllm)
    completions = filled(mllm, template, 0.7, 0.8)
    zeros_SR = torch.zeros(completions.token_ids_SR.shape, dtype=torch.float64)
    scored = score_shared(
        mllm, layout, prefix, None, completions, zeros_SR, Policy(0.7, 0.8), pairs=[0, 1], replay_support=True
    )
    assert scored.log_probs_SR.sum(dim=1).tolist() == pytest.approx(completions.log_probs_S.tolist(), rel=1e-9)
    assert not scored.log_probs_SR[completions.sets_SR == FED].any()
    assert (completions.num_drawn_S < completions.num_tokens_S).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0])
def test_every_answer_can_be_read_and_describes_everything(mllm: FrozenMLLM, temperature: float) -> None:
    """However unlikely: at temperature 10 text is drawn nearly evenly from all tokens."""
    template = Template(mllm, OPEN)
    seen = set()
    for seed in range(4):
        completions = filled(mllm, template, temperature, seed=seed, group=6)
        assert completions.ended_S.all() and int(completions.num_tokens_S.max()) <= template.longest
        for text in texts_of(mllm, completions):
            answer = parse_answer(text, OPEN.verdict_key)
            assert answer.verdict in (0, 1)
            assert list(json.loads(text)) == ["jet_1", "jet_2", "same_variant"]
            for said in answer.descriptions(text):
                assert list(said) == ["nose", "livery", "no. of doors"]
                assert said["nose"] in OPEN.attributes["nose"] and said["no. of doors"] in ("2", "12")
                assert said["livery"]
            seen.add(text)
    assert len(seen) > 20 or temperature < 1


def test_answers_are_replayed_through_the_same_sets(mllm: FrozenMLLM) -> None:
    template = Template(mllm, OPEN)
    completions = filled(mllm, template, 3.0)
    for ids, sets in zip(completions.token_ids_SR.tolist(), completions.sets_SR.tolist(), strict=True):
        length = sum(i >= 0 for i in ids)
        assert template.replayed(ids[:length]) == (ids[:length], sets[:length])


def test_text_ends_at_its_quote_or_at_its_bound(mllm: FrozenMLLM) -> None:
    template = Template(mllm, replace(OPEN, attributes={"livery": None}, value_tokens=2))
    completions = filled(mllm, template, 0.05, group=8)
    drawn = {int(n) for n in completions.num_drawn_S}
    assert max(drawn) <= 2 * 2 + 1
    loose = filled(mllm, Template(mllm, replace(OPEN, attributes={"livery": None}, value_tokens=40)), 1.0, group=8)
    values = [len(parse_answer(t, OPEN.verdict_key).descriptions(t)[0]["livery"]) for t in texts_of(mllm, loose)]
    assert len(set(values)) > 1, "not all stop at the bound"


def test_given_answers_take_the_templates_form(mllm: FrozenMLLM) -> None:
    template = Template(mllm, OPEN)
    text = (
        '```json\n{"jet_1": {"nose": "long", "livery": "red and blue all over", "No._of doors": "12"}, "jet_2": {"livery": '
        '"a \\"b\\"", "nose": "V-SHAPED", "no. of doors": 2}, "reasoning": "so", "same_variant": "no"}\n```'
    )
    (written,) = texts_of(mllm, given_in(template, [text], mllm.device))
    said = json.loads(written)
    assert said["jet_1"]["nose"] == "long" and said["jet_2"]["nose"] == "V-shaped"
    assert said["jet_1"]["livery"] and '"' not in said["jet_2"]["livery"]
    assert (said["jet_2"]["no. of doors"], said["same_variant"], "reasoning" in said) == ("2", "no", False)
    for broken in (
        text.replace('"long"', '"short"'),
        text.replace('"nose": "long", ', ""),
        text.replace("red and blue all over", " "),
    ):
        with pytest.raises(ValueError, match=r"answers: .* gives no allowed value of jet_1\.(nose|livery)"):
            template.given([broken])
    with pytest.raises(ValueError, match="gives no verdict under 'same_variant'"):
        template.given([text.replace('"no"', '"maybe"')])


def test_the_demo_mllm_is_fed_differences_since_it_knows_no_answer_without() -> None:
    from saga_ray.model_folder import model_folder

    folder = model_folder(None)
    demo, prompt = load_mllm(MLLMConfig()), load_prompt("demo", "structured", folder)
    template = Template(demo, prompt)
    first = {name: words[0] for name, words in prompt.attributes.items()}
    second = first | {"bill color": "red", "wing color": "gray"}
    text = json.dumps({"bird_1": first, "bird_2": second, "same_species": "yes"})
    (written,) = texts_of(demo, given_in(template, [text], demo.device))
    assert json.loads(written)["differences"] == ["wing color", "bill color"]
    assert template.longest == prompt.max_new_tokens
    with pytest.raises(ValueError, match=r"prompt\.answers: the MLLM in .* has no tokens for template answers"):
        Template(demo, load_prompt("demo", "generic", folder))


def test_generic_answers_have_words_and_a_verdict(mllm: FrozenMLLM) -> None:
    template = Template(mllm, replace(OPEN, variant="generic", value_tokens=6))
    for text in texts_of(mllm, filled(mllm, template, 1.0)):
        assert list(json.loads(text)) == ["differences", "same_variant"]
    (written,) = texts_of(mllm, given_in(template, ['{"differences": ["a", "b"], "same_variant": "yes"}'], mllm.device))
    assert json.loads(written) == {"differences": "a, b", "same_variant": "yes"}


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "internvl-qwen3"])
def test_other_families_fill_in_templates_as_they_are_scored(name: str, tmp_path: Path) -> None:
    """Windows, positions of one axis or three, other tokenizers: scoring feeds the same answers without any gaps to mind."""
    other = load_mllm(MLLMConfig(path=str(small_family_folder(tmp_path / name, name)), dtype="float64"))
    marks = other.marks
    between = marks.closing + " and then the other: " + marks.opening
    layout = other.layout(
        ("the bill and wing of two birds:" + marks.opening, between, marks.closing + " same?"), (2, 2)
    )
    tokens = torch.randn(2, 2, other.num_levels, 4, HIDDEN, generator=torch.Generator().manual_seed(1)).double()
    prefix = other.prefill(tokens, layout, other.constant_prefix(layout))
    template = Template(other, OPEN)
    numbers = uniform_numbers(0, 0, range(2), 3, template.longest)
    completions = fill_in(other, layout, prefix, numbers, template, temperature=1.0, top_p=0.9)
    zeros_SR = torch.zeros(completions.token_ids_SR.shape, dtype=torch.float64)
    policy = Policy(1.0, 0.9)
    scored = score_shared(other, layout, prefix, None, completions, zeros_SR, policy, pairs=[0, 1], replay_support=True)
    assert scored.log_probs_SR.sum(dim=1).tolist() == pytest.approx(completions.log_probs_S.tolist(), rel=1e-8)
    assert len(set(completions.num_tokens_S.tolist())) > 1
    assert all(parse_answer(text, OPEN.verdict_key).verdict >= 0 for text in texts_of(other, completions))
