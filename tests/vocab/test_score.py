"""Answers of a known kind: what decides, what is silent and what is noise is found as such."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saga_ray.leaderboard.figures import to_png
from saga_ray.leaderboard.vocabulary_plots import information_bars
from saga_ray.mllm.prompt import Prompt
from saga_ray.mllm.text import TokenTexts
from saga_ray.scorer.local import LocalScorer
from saga_ray.train.naming import Questions, ask
from saga_ray.types import Dataset, ImagePair
from saga_ray.vocab.asking import Panel, Sample, answers, panel
from saga_ray.vocab.score import VocabularyScore, score_vocabulary
from saga_ray.vocab.words import normal_name
from tests.helpers.small_mllm import small_tokenizer
from tests.train.small import small_run_config

PROMPT = Prompt(
    "critic",
    "vase",
    {
        "glaze": ("matt", "gloss"),  # tells the truth nine times in ten
        "foot": ("round", "flat"),  # always the same
        "neck": ("long", "short"),  # a coin
        "mark": ("yes", "no"),  # seldom written
        "crack": None,  # never
        "rim color": ("blue", "grey"),  # another spelling, and a word that is not offered
    },
    "same",
    "structured",
)
NUM_PAIRS = 240


def vase(rng: np.random.Generator, glaze: str) -> dict[str, str]:
    words = {"glaze": glaze, "foot": "round", "neck": str(rng.choice(["long", "short"]))}
    if rng.random() < 0.2:
        words["mark"] = str(rng.choice(["yes", "no"]))
    return words | {"Rim_Colour": str(rng.choice(["Blue", "gray", "pink"]))}


def answer(rng: np.random.Generator, differ: bool) -> tuple[str, int]:
    said_differ = differ ^ (rng.random() < 0.1)
    verdict = "no" if said_differ else "yes"
    first, second = vase(rng, "matt"), vase(rng, "gloss" if said_differ else "Matt")
    return json.dumps({"vase_1": first, "vase_2": second, "same": verdict}), int(not said_differ)


def known_answers(num_malformed: int = 0) -> tuple[Any, Questions]:
    """As much of a ScoreResult as is read: two answers per pair, written with a real tokenizer."""
    rng, tokenizer = np.random.default_rng(0), small_tokenizer()
    pairs = tuple(ImagePair(0, 1, n % 2 == 0, n) for n in range(NUM_PAIRS))
    told = [[answer(rng, not pair.same_class) for _ in range(2)] for pair in pairs]
    ids = [[[*tokenizer.encode(text), tokenizer.eos_token_id] for text, _ in group] for group in told]
    longest = max(len(each) for group in ids for each in group)
    padded = [[each + [-1] * (longest - len(each)) for each in group] for group in ids]
    verdicts_PG = torch.tensor([[verdict for _, verdict in group] for group in told], dtype=torch.int8)
    verdicts_PG[:num_malformed] = -1
    result = SimpleNamespace(
        texts_PG=tuple(tuple(text for text, _ in group) for group in told),
        token_ids_PGR=torch.tensor(padded),
        num_tokens_PG=(torch.tensor(padded) >= 0).sum(dim=2),
        verdicts_PG=verdicts_PG,
        well_formed_PG=verdicts_PG >= 0,
    )
    return result, Questions(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), pairs)


@pytest.fixture(scope="module")
def found() -> VocabularyScore:
    result, questions = known_answers()
    return score_vocabulary(result, questions, PROMPT, TokenTexts(small_tokenizer()))


def test_every_kind_of_attribute_is_found_as_what_it_is(found: VocabularyScore) -> None:
    by_name = {each.name: each for each in found.attributes}
    findings = {name: each.finding for name, each in by_name.items()}
    assert findings.pop("neck") in ("for nothing", "open")
    assert findings.pop("rim color") in ("for nothing", "open")
    assert findings == {
        "glaze": "decides", "foot": "for nothing", "mark": "seldom answered", "crack": "never answered",
    }  # fmt: skip
    glaze = by_name["glaze"]
    # 0.9 right is 1 - H(0.1) = 0.53 bits; it is what the verdict says, whole.
    assert glaze.low < 0.531 < glaze.high and glaze.bits == pytest.approx(0.531, abs=0.1)
    assert glaze.verdict_bits == pytest.approx(1.0, abs=0.02)
    assert glaze.differs_same == pytest.approx(0.1, abs=0.05) and glaze.differs_different == pytest.approx(
        0.9, abs=0.05
    )
    assert by_name["foot"].bits == 0 and by_name["foot"].high == 0


def test_what_is_said_and_offered_is_counted(found: VocabularyScore) -> None:
    by_name = {each.name: each for each in found.attributes}
    assert by_name["glaze"].answered == by_name["foot"].answered == 1
    assert by_name["mark"].answered == pytest.approx(0.2, abs=0.06)
    assert (by_name["crack"].answered, by_name["crack"].tokens, by_name["crack"].listed) == (0, 0, None)
    assert by_name["glaze"].listed == 1, "whatever its case"
    assert by_name["rim color"].listed == pytest.approx(2 / 3, abs=0.06), "gray is grey, pink is not offered"


def test_the_cost_without_what_is_dropped_is_that_of_answers_written_without_it(found: VocabularyScore) -> None:
    assert {"foot", "mark", "crack"} <= {each.name for each in found.dropped}
    assert found.tokens_without == pytest.approx(found.tokens - sum(each.tokens for each in found.dropped))
    result, _ = known_answers()
    tokenizer, dropped = small_tokenizer(), {each.name for each in found.dropped}
    lengths = []
    for text in (text for group in result.texts_PG for text in group):
        shorter = json.loads(text)
        for key in ("vase_1", "vase_2"):
            words = shorter[key].items()
            shorter[key] = {name: word for name, word in words if normal_name(name) not in dropped}
        lengths.append(len(tokenizer.encode(json.dumps(shorter))) + 1)
    assert found.tokens_without == pytest.approx(np.mean(lengths), rel=0.02)


def test_the_rest_tells_pairs_apart_as_well(found: VocabularyScore) -> None:
    assert found.told == pytest.approx(0.9, abs=0.07)
    assert found.told_without == pytest.approx(0.9, abs=0.07)


def test_malformed_answers_are_counted_and_say_nothing() -> None:
    result, questions = known_answers(num_malformed=60)
    found = score_vocabulary(result, questions, PROMPT, TokenTexts(small_tokenizer()))
    assert found.well_formed == 0.75
    assert found.attributes[0].answered == 1 and found.attributes[0].finding == "decides"
    result, questions = known_answers(num_malformed=NUM_PAIRS)
    with pytest.raises(ValueError, match="none of the answers is well formed"):
        score_vocabulary(result, questions, PROMPT, TokenTexts(small_tokenizer()))


def test_more_is_for_nothing_if_more_is_wanted() -> None:
    result, questions = known_answers()
    strict = score_vocabulary(result, questions, PROMPT, TokenTexts(small_tokenizer()), least_bits=0.5)
    assert {each.finding for each in strict.attributes if each.name in ("neck", "rim color")} == {"for nothing"}
    assert strict.attributes[0].finding == "decides"


def test_the_result_is_json_and_a_picture(found: VocabularyScore) -> None:
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["dropped"] == [each.name for each in found.dropped] and len(told["attributes"]) == 6
    rows = [vars(each) for each in found.attributes]
    assert to_png(information_bars(rows)) == to_png(information_bars(rows)) != to_png(information_bars(rows[:3]))


@pytest.fixture(scope="module")
def asked(mllm: Any) -> Panel:
    return panel(small_run_config(mllm), Sample(num_pairs=8, num_answers=2))


def test_asked_in_parts_the_mllm_answers_the_same(asked: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saga_ray.vocab.asking._PAIRS_AT_ONCE", 3)
    in_parts = answers(asked.initial, asked)
    whole = ask(asked.initial, LocalScorer(asked.engine), asked.questions).result
    assert in_parts.texts_PG == whole.texts_PG
    assert torch.equal(in_parts.num_tokens_PG, whole.num_tokens_PG)
    assert torch.equal(in_parts.well_formed_PG, whole.well_formed_PG)


def test_pairs_are_asked_about_in_full_whatever_the_runs_prompt(mllm: Any, dataset: Dataset) -> None:
    generic = panel(small_run_config(mllm, prompt__variant="generic"), Sample(num_pairs=8))
    assert generic.engine.prompt.variant == "structured"
    assert len(generic.questions.pairs) == 8 and generic.dataset.fingerprint == dataset.fingerprint


def test_a_split_without_classes_is_refused(mllm: Any, monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    empty = replace(dataset.validation, image_ids=(), labels_N=np.zeros(0, np.int64), class_names=())
    monkeypatch.setattr("saga_ray.vocab.asking.load_dataset", lambda config: replace(dataset, validation=empty))
    with pytest.raises(ValueError, match="--split validation: 'demo' has no validation classes"):
        panel(small_run_config(mllm), Sample())
