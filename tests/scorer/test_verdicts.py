"""Expected rewards under tokenizers whose verdicts are several tokens, begin with a space, or grow into what stands around them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saga_ray.configure import resolve
from saga_ray.mllm.answers import parse_answer
from saga_ray.mllm.gradients import library_hidden
from saga_ray.mllm.sampling import Completions
from saga_ray.mllm.text import TokenTexts
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.judge import Judge
from saga_ray.scorer.local import build_engine
from saga_ray.types import ScoreRequest
from tests.helpers.published import sentencepiece_tokenizer
from tests.helpers.scoring import assert_gradient_is_the_derivative, relative, small_request, small_run_config
from tests.helpers.small_mllm import small_answer, small_tokenizer

SAID = {word: small_answer("hooked", "plain", "straight", "barred", word) for word in ("yes", "no")}


@pytest.fixture(scope="module")
def split(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small MLLM, whose tokenizer does not put `yes` together; the token that holds it whole is never written."""
    path = Path(shutil.copytree(folder, tmp_path_factory.mktemp("split") / "mllm"))
    values = json.loads((path / "tokenizer.json").read_text())
    merges = values["model"]["merges"]
    merges[:] = [pair for pair in merges if "".join(pair) not in ("yes", "ye", "es")]
    (path / "tokenizer.json").write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def engine(split: Path) -> ScoringEngine:
    return build_engine(small_run_config(split, mllm__dtype="float64", grpo__reward="expected"))


def test_a_verdict_of_several_tokens_has_the_product_of_their_probabilities(engine: ScoringEngine) -> None:
    tokenizer = engine.mllm.tokenizer
    assert len(tokenizer.encode("yes", add_special_tokens=False)) == 3
    request = small_request(2, answers=((SAID["yes"], SAID["no"]),) * 2)  # pair 0 is of one class, pair 1 is not
    found = engine.score(request)
    assert (found.rewards_PG > 0).all()
    assert found.rewards_PG[:, 0] == pytest.approx(found.rewards_PG[:, 1].tolist(), rel=1e-9)
    # The slow way: the answer cut before its verdict, and right behind it.
    texts = [SAID["yes"].split("yes")[0], SAID["yes"].split("yes")[0] + "yes"]
    plain = ScoringEngine(engine.mllm, engine.prompt, small_run_config(engine.mllm.folder))
    judged = plain.score(replace(request, answers=(tuple(texts),) * 2)).log_probs_PG
    end = torch.tensor([log_prob_of_end(plain, request, text) for text in texts]).T  # given answers hold an end token
    assert found.rewards_PG[0, 0] == pytest.approx(float(((judged - end)[0, 1] - (judged - end)[0, 0]).exp()), rel=1e-6)


def log_prob_of_end(engine: ScoringEngine, request: ScoreRequest, text: str) -> list[float]:
    """log pi of the end token behind a text, per pair."""
    mllm = engine.mllm
    tokens = request.tokens.tokens_NLTD
    out = []
    for pair in request.pairs:
        layout = mllm.layout(engine.texts, (2, 2))
        prompt = layout.prompt_ids(mllm.model.config.image_token_id)
        ids = torch.tensor([[*prompt, *mllm.tokenizer.encode(text, add_special_tokens=False)]])
        rows = mllm.answer_positions(layout, ids.shape[1] - len(prompt) + 1)[:, 1:]
        positions = torch.cat((layout.positions_3C, rows), dim=1)
        levels = tokens[[pair.first, pair.second]].transpose(0, 1).to(mllm.dtype)
        with torch.no_grad():
            hidden = library_hidden(mllm, ids, positions, levels)[0, -1:]
            out.append(float(mllm.logits(hidden, 1.0).log_softmax(dim=1)[0, mllm.end_ids[0]]))
    return out


def test_the_gradient_of_such_a_reward_equals_its_naive_twin_and_its_derivative(engine: ScoringEngine) -> None:
    request = small_request(2, answers=((SAID["yes"], SAID["no"]),) * 2)
    twin = ScoringEngine(engine.mllm, engine.prompt, engine.config, path="naive")
    ours, theirs = engine.score(request), twin.score(request)
    assert relative(ours.token_grads_P2LTD, theirs.token_grads_P2LTD) < 1e-10
    # All answers begin alike, so nothing but the verdict weighs: the gradient is that of p times -(G - 1) / G / sd, summed.
    p = ours.rewards_PG[0, 0]
    factor = -0.5 / (p * (1 - p)).sqrt()
    assert_gradient_is_the_derivative(
        engine, request, lambda moved: float(factor * moved.rewards_PG[0].sum()), rel=1e-6
    )


def test_template_verdicts_of_several_tokens_are_yes_or_no(engine: ScoringEngine) -> None:
    template = ScoringEngine(engine.mllm, replace(engine.prompt, answers="template"), engine.config)
    request = small_request(3)
    turned = tuple(replace(pair, same_class=not pair.same_class) for pair in request.pairs)
    said = template.score(request).texts_PG
    ours, theirs = (
        template.score(replace(request, pairs=pairs, answers=said)).rewards_PG for pairs in (request.pairs, turned)
    )
    assert (ours > 0).all() and (ours + theirs).flatten().tolist() == pytest.approx([1.0] * 12, abs=1e-12)


def test_the_spelling_of_the_written_verdict_does_not_matter() -> None:
    """A model may write `yes` letter by letter; the right verdict is the tokenizer's own all the same."""
    tokenizer = small_tokenizer()
    judge = Judge(TokenTexts(tokenizer), "same", "token")
    whole = tokenizer.encode(SAID["yes"], add_special_tokens=False)
    (yes,) = tokenizer.encode("yes", add_special_tokens=False)
    place = whole.index(yes)
    letters = tokenizer.convert_tokens_to_ids(["y", "e", "s"])
    spelled = [*whole[:place], *letters, *whole[place + 1 :], tokenizer.eos_token_id]
    zeros = torch.zeros(1, dtype=torch.float64)
    completions = Completions(torch.tensor([spelled]), torch.zeros(1, len(spelled)), zeros, zeros == 0)
    answers = [parse_answer(SAID["yes"], "same")]
    for same, word in ((True, "yes"), (False, "no")):
        verdicts = judge.verdicts(completions, answers, [same])
        assert verdicts.place_S.tolist() == [place]
        assert verdicts.right_SW.tolist() == [tokenizer.encode(word, add_special_tokens=False)]
        scored = verdicts.corrected(completions, 1).ids_SR[0, : place + 1].tolist()
        assert scored == [*whole[:place], verdicts.right_SW.item()]


def test_a_word_that_stands_inside_text_does_not_get_the_space_of_one_that_begins_it() -> None:
    tokenizer = sentencepiece_tokenizer()
    texts = TokenTexts(tokenizer)
    for verdict, other in (("yes", "no"), ("no", "yes")):
        text = f'{{"same": "{verdict}"}}'
        ids, start = tokenizer.encode(text, add_special_tokens=False), text.index(verdict)
        found = texts.with_word(ids, start, start + len(verdict), other)
        assert found is not None
        place, right = found
        corrected = [*ids[:place], *right, *ids[place + 1 :]]
        assert tokenizer.decode(corrected) == text.replace(verdict, other)
        assert right != tokenizer.encode(other, add_special_tokens=False), "alone it would begin with a space"


def test_verdicts_that_cannot_take_each_others_place_are_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "mllm"))
    values = json.loads((path / "tokenizer.json").read_text())
    grown = dict(values["added_tokens"][0], content='"yes"', special=False, id=len(values["model"]["vocab"]))
    values["added_tokens"].append(grown)
    (path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"grpo\.reward: 'expected' needs .*set grpo\.reward=sampled, or prompt\."):
        build_engine(small_run_config(path, grpo__reward="expected"))
    assert not build_engine(small_run_config(path)).knows_right_verdicts


def test_the_bundled_mllm_can_be_asked_for_an_expected_reward() -> None:
    """Its tokenizer has no tokens for a verdict alone, only for what its answers are made of."""
    assert build_engine(resolve("demo", overrides={"grpo.reward": "expected"})).knows_right_verdicts
