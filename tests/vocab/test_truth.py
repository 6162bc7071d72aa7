"""Truth: who is matched with whom, what counts, and how sure a difference is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_ray.configure import resolve
from saga_ray.encoder.encoder import build_encoder
from saga_ray.leaderboard.figures import to_png
from saga_ray.leaderboard.vocabulary_plots import truth_lines
from saga_ray.mllm.prompt import Prompt, prompt_from_vocabulary
from saga_ray.mllm.vocabulary import load_vocabulary
from saga_ray.scorer.local import build_engine
from saga_ray.train.diagnosis import probes
from saga_ray.train.local import run_local
from saga_ray.train.naming import ask, asking_engine, heard_shares, sample_questions
from saga_ray.types import Dataset
from saga_ray.vocab.asking import Sample
from saga_ray.vocab.measure import measure_score, measure_truth
from saga_ray.vocab.truth import compare, match, rightly_named
from tests.helpers.small_mllm import ATTRIBUTES
from tests.train.small import small_run_config

PROMPT = Prompt("r", "bird", {name: tuple(values) for name, values in ATTRIBUTES.items()}, "same", "structured")


@pytest.fixture(scope="module")
def known(dataset: Dataset) -> Dataset:
    """The small world with labels for the small MLLM's two attributes, written as CUB writes them, one in four not known."""
    tables = {}
    for split in ("train", "validation", "test"):
        table = dataset.split(split)
        truth_NA = np.stack([table.labels_N % 2, table.labels_N // 2 % 2, table.labels_N % 3], axis=1)
        truth_NA[np.arange(len(table)) % 4 == 3, 1] = -1
        tables[split] = replace(table, truth_NA=truth_NA)
    names = ("has_bill_shape", "wing", "has_song")
    values = (("hooked_(up)", "straight_bill"), ("Barred", "plain"), ("loud", "soft", "none"))
    return replace(dataset, attribute_names=names, attribute_values=values, **tables)


OWN = replace(PROMPT, attributes={"bill shape": ("hooked", "straight"), "wing": ("barred", "plain"), "leg": None})


def test_attributes_are_matched_by_name_and_the_rest_is_listed(known: Dataset) -> None:
    matched = match(known, OWN)
    assert matched.columns == {"bill shape": 0, "wing": 1}
    assert matched.left_out == {
        "leg": "the data set has no labels for it",
        "has_song": "the vocabulary does not ask for it",
    }
    other_words = replace(OWN, attributes={"bill shape": ("long", "short"), "wing": None})
    assert match(known, other_words).left_out["bill shape"] == "vocabulary and labels share no value"
    assert match(known, other_words).columns == {"wing": 1}


def test_nothing_in_common_is_a_sentence(known: Dataset) -> None:
    with pytest.raises(ValueError, match=r"has_bill_shape, wing.*\(glaze, \.\.\.\) share no attribute"):
        match(known, replace(OWN, attributes={"glaze": None}))
    with pytest.raises(ValueError, match="has no attribute labels"):
        match(replace(known, attribute_names=()), OWN)


def test_the_birds_vocabulary_meets_all_of_cubs_groups(known: Dataset) -> None:
    birds, _ = load_vocabulary("birds")
    raw = {f"has_{name.replace(' ', '_')}": values for name, values in birds.attributes.items()}
    as_cub = replace(known, attribute_names=tuple(raw), attribute_values=tuple(map(tuple, raw.values())))  # type: ignore[arg-type]
    matched = match(as_cub, prompt_from_vocabulary(birds.model_dump(), "structured"))
    assert list(matched.columns.values()) == list(range(28)) and not matched.left_out


def test_counts_worked_by_hand(known: Dataset) -> None:
    from types import SimpleNamespace

    import torch

    from saga_ray.train.naming import Questions
    from saga_ray.types import ImagePair

    truth_NA = np.array([["hooked_(up)", "Barred"], ["straight_bill", ""], ["curly", "plain"]])
    questions = Questions(
        np.zeros((3, 8, 8, 3), np.uint8), np.arange(3), (ImagePair(0, 1, False, 0), ImagePair(2, 0, True, 1)),
        ("has_bill_shape", "wing"), truth_NA,
    )  # fmt: skip
    said = [
        {"bird_1": {"Bill_Shape": "Hooked", "wing": "plain"}, "bird_2": {"Bill_Shape": "straight", "wing": "plain"}},
        {"bird_1": {"bill shape": "curly", "wing": "plain bird"}, "bird_2": {"bill shape": "hooked bill"}},
    ]
    texts = tuple((json.dumps(each | {"same": "no"}), "broken") for each in said)
    verdicts_PG = torch.tensor([[0, -1], [0, -1]])
    result: Any = SimpleNamespace(texts_PG=texts, well_formed_PG=verdicts_PG >= 0)
    right_CA, known_CA = rightly_named(
        result, questions, OWN, {"bill shape": 0, "wing": 1}, np.array([0, 1, 0])
    )  # picture 2 is of class 0 as well
    # Picture 0 is described four times (twice broken), 1 and 2 twice (once broken).
    assert known_CA.tolist() == [[4, 6], [2, 0]]  # "curly" cannot be said, and the wing of 1 is not known
    assert right_CA.tolist() == [[2, 0], [1, 0]]  # "plain bird" is another word than "plain"


def test_with_equal_words_the_shares_are_those_of_the_diagnosis(mllm: Path, known: Dataset) -> None:
    plain_known = replace(
        known,
        attribute_names=("bill", "wing", "song"),
        attribute_values=(*map(tuple, ATTRIBUTES.values()), ("a", "b", "c")),
    )  # type: ignore[arg-type]
    config = small_run_config(mllm)
    engine = asking_engine(build_engine(config), 2)
    questions = sample_questions(plain_known, "validation", 32, 6)
    result = ask(build_encoder(config), engine, questions).result
    columns = match(plain_known, engine.prompt).columns
    labels_N = plain_known.validation.labels_N[questions.rows_N]
    right_CA, known_CA = rightly_named(result, questions, engine.prompt, columns, labels_N)
    shares = heard_shares(result, questions, engine.prompt)["attributes"]
    assert set(columns) == set(shares) == {"bill", "wing"}
    for a, name in enumerate(columns):
        assert right_CA[:, a].sum() / known_CA[:, a].sum() == pytest.approx(shares[name])
    assert known_CA[:, 1].sum() < known_CA[:, 0].sum() == 24


# --- unknown truth ---


def test_unknown_truth_is_an_empty_word_and_no_difference_between_classes(known: Dataset) -> None:
    questions = sample_questions(known, "validation", 32, 24)
    table = known.validation
    assert (questions.truth_NA[:, 1] == "").tolist() == (table.truth_NA[questions.rows_N, 1] < 0).tolist()
    assert not (questions.truth_NA[:, 0] == "").any()
    # With most of the truth unknown, neighbours are judged by what is known.
    truth_NA = np.full_like(table.truth_NA, -1)
    truth_NA[:, 2] = [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    blind = replace(known, validation=replace(table, truth_NA=truth_NA))
    asked = sample_questions(blind, "validation", 32, 24)
    for pair in asked.pairs[1::2]:
        first, second = (table.labels_N[asked.rows_N[i]] for i in (pair.first, pair.second))
        assert {first, second} in ({0, 2}, {1, 3})


def test_probes_do_not_learn_what_is_not_known() -> None:
    rng = np.random.default_rng(0)
    labels_N = np.repeat(np.arange(20), 6)
    truth_N = labels_N % 2
    embeddings_NE = rng.normal(size=(120, 4))
    embeddings_NE[:, 0] += 6 * truth_N
    unknown_N = np.arange(120) % 3 == 0
    embeddings_NE[unknown_N, 1] += 6  # easy to tell, if it were a value of its own
    [(accuracy, chance)] = probes(embeddings_NE, np.where(unknown_N, -1, truth_N)[:, None], labels_N).values()
    assert accuracy > 0.95 and chance > 0.4


# --- before and after ---


def test_shares_worked_by_hand_and_the_mean_comes_first() -> None:
    known_CA = np.array([[4, 4, 0], [4, 0, 0]])
    before_CA, after_CA = np.array([[1, 2, 0], [3, 0, 0]]), np.array([[4, 1, 0], [4, 0, 0]])
    rows = compare(["bill", "wing", "song"], before_CA, after_CA, known_CA)
    assert [row.name for row in rows] == ["all", "bill", "wing"]
    assert [(row.before, row.after) for row in rows] == [(0.5, 0.625), (0.5, 1.0), (0.5, 0.25)]
    assert [row.num_classes for row in rows] == [2, 2, 1]
    assert rows[1].difference == 0.5


def test_the_interval_is_that_of_classes_drawn_one_by_one() -> None:
    rng = np.random.default_rng(0)
    known_CA = rng.integers(1, 8, (30, 2))
    before_CA, after_CA = rng.binomial(known_CA, 0.4), rng.binomial(known_CA, 0.6)
    draws = []
    for _ in range(2000):
        drawn = rng.integers(0, 30, 30)
        num = sum(known_CA[c] for c in drawn)
        draws.append(sum(after_CA[c] for c in drawn) / num - sum(before_CA[c] for c in drawn) / num)
    slow = np.quantile(draws, [0.025, 0.975], axis=0)
    rows = compare(["bill", "wing"], before_CA, after_CA, known_CA)
    for a, row in enumerate(rows[1:]):
        assert (row.low, row.high) == pytest.approx(tuple(slow[:, a]), abs=0.02)
    ends = np.quantile(np.mean(draws, axis=1), [0.025, 0.975])
    assert (rows[0].low, rows[0].high) == pytest.approx(tuple(ends), abs=0.02)


def test_one_class_says_nothing_about_others_and_equal_counts_nothing_at_all() -> None:
    [_, row] = compare(["bill"], np.array([[1]]), np.array([[3]]), np.array([[4]]))
    assert (row.difference, row.low, row.high) == (0.5, -1, 1)
    same = np.full((5, 1), 2)
    [_, row] = compare(["bill"], same, same, np.full((5, 1), 4))
    assert (row.low, row.high) == (0, 0)


def test_the_picture_depends_on_its_numbers_alone() -> None:
    rows = [
        {"name": "all", "before": 0.4, "after": 0.6, "low": 0.1, "high": 0.3},
        {"name": "bill", "before": 0.9, "after": 0.8, "low": -0.3, "high": 0.2},
    ]
    assert to_png(truth_lines(rows)) == to_png(truth_lines(rows)) != to_png(truth_lines(rows[:1]))


# --- a run ---


@pytest.fixture(scope="module")
def run(mllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    config = small_run_config(mllm, "potential-field", optim__steps=2, optim__lr_tower=0.05)
    run_local(config, runs, "short")
    return runs / "short"


def test_a_run_is_measured_before_and_after(run: Path, known: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_known = replace(known, attribute_names=("has_bill", "wing", "song"))
    monkeypatch.setattr("saga_ray.vocab.asking.load_dataset", lambda config: plain_known)
    found = measure_truth(str(run), Sample(num_pairs=6, num_answers=2))
    assert [row.name for row in found.rows] == ["all", "bill", "wing"]
    assert list(found.left_out) == ["song"]
    assert all(0 <= share <= 1 for row in found.rows for share in (row.before, row.after))
    assert any(row.difference for row in found.rows), "so large a rate changes what is seen"
    json.dumps(found.as_json(), allow_nan=False)


def test_a_world_whose_words_the_mllm_does_not_use_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="share no attribute"):
        measure_truth(str(run), Sample(num_pairs=8))
    with pytest.raises(ValueError, match="not the folder of a finished run"):
        measure_truth(str(run.parent / "none"), Sample(num_pairs=8))


def test_a_chosen_vocabulary_is_asked_and_scored(reading_mllm: Path, tmp_path: Path) -> None:
    """A random model writes no form when it is asked in full: the sentence says so, and the engine asked the right words."""
    (tmp_path / "mine.yaml").write_text(
        "{role: critic, item: vase, verdict_key: same_maker, attributes: {glaze: [matt, gloss]}}"
    )
    config = resolve(
        "demo",
        overrides={
            "data.image_size": 32, "data.num_classes": [8, 3, 3], "data.num_images": [4, 3, 3],
            "data.classes_per_batch": 8, "grpo.max_new_tokens": 4, "mllm.path": str(reading_mllm),
            "prompt.vocabulary": str(tmp_path / "mine.yaml"),
        },
    )  # fmt: skip
    texts = build_engine(config).texts
    assert "- glaze (choose from: matt, gloss)" in texts[0] and '"same_maker"' in texts[0]
    with pytest.raises(ValueError, match="none of the answers is well formed"):
        measure_score(config, Sample(num_pairs=20, num_answers=1))
