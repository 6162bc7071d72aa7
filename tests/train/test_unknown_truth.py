"""Truth that is known of some images only (-1 elsewhere), as CUB's is: what is not known is neither right nor wrong."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from saga_ray.mllm.prompt import Prompt
from saga_ray.train.consensus import true_shares
from saga_ray.train.diagnosis import probes
from saga_ray.train.naming import Questions, heard_shares, sample_questions
from saga_ray.types import Dataset, ImagePair, ImageTable
from tests.helpers.small_mllm import ATTRIBUTES, small_answer


class Grey:
    def load(self, rows, size):
        return np.zeros((len(rows), size, size, 3), np.uint8)


def _dataset() -> Dataset:
    truth_NA = np.array([[0, 1], [0, -1], [1, -1], [1, 0], [-1, 0], [1, 1], [0, 0], [-1, 0]])
    labels_N = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    ids, names = tuple("abcdefgh"), ("x", "y", "z")
    table = ImageTable(ids, labels_N, names, Grey(), truth_NA)
    values = tuple(map(tuple, ATTRIBUTES.values()))
    return Dataset("cub", table, table, table, "", attribute_names=tuple(ATTRIBUTES), attribute_values=values)


def test_the_truth_of_a_class_is_what_most_of_its_known_images_have():
    bill, wing = ATTRIBUTES.items()
    said = {label: (words[bill[0]], words[wing[0]]) for label, words in true_shares(_dataset()).items()}
    expected = {0: (0, 1), 1: (1, 0), 2: (0, 0)}
    assert said == {k: ({bill[1][b]: 1.0}, {wing[1][w]: 1.0}) for k, (b, w) in expected.items()}
    table = replace(_dataset().train, truth_NA=np.full((8, 2), -1))
    assert true_shares(replace(_dataset(), train=table)) == {0: {}, 1: {}, 2: {}}


def test_questions_hold_no_word_where_the_truth_is_not_known():
    dataset = _dataset()
    asked = sample_questions(dataset, "test", 8, 40)
    words = [[*values, ""] for values in dataset.attribute_values]
    for row, truth_A in zip(asked.rows_N, asked.truth_NA, strict=True):
        assert truth_A.tolist() == [words[a][value] for a, value in enumerate(dataset.test.truth_NA[row])]


def test_an_unknown_value_counts_neither_as_right_nor_as_wrong():
    bill, wing = ATTRIBUTES
    truth_NA = np.array([["hooked", ""], ["", ""]])
    pairs = (ImagePair(0, 1, False, 0), ImagePair(0, 0, True, 1))
    asked = Questions(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), pairs, (bill, wing), truth_NA)
    texts = tuple((small_answer("hooked", "plain", "straight", "barred", verdict),) for verdict in ("no", "yes"))
    verdicts_PG = torch.tensor([[0], [1]], dtype=torch.int8)
    result = SimpleNamespace(
        texts_PG=texts, verdicts_PG=verdicts_PG, well_formed_PG=verdicts_PG >= 0, rewards_PG=torch.ones(2, 1)
    )
    prompt = Prompt("watcher", "bird", {name: tuple(v) for name, v in ATTRIBUTES.items()}, "same", "structured")
    # Image 0 is described three times, rightly in the first two; nothing is known of the rest.
    assert heard_shares(result, asked, prompt)["attributes"] == {bill: 2 / 3}


def test_probes_leave_out_what_is_not_known():
    rng = np.random.default_rng(0)
    labels_N, truth_N = np.arange(80) // 4, np.arange(80) % 2
    embeddings_NE = np.stack([truth_N * 4 - 2.0, rng.normal(size=80)], axis=1)
    holes_N = np.where(rng.random(80) < 0.4, -1, truth_N)
    found = probes(embeddings_NE, np.stack([holes_N, np.full(80, -1)], axis=1), labels_N)
    assert found.keys() == {0} and found[0][0] == 1.0
