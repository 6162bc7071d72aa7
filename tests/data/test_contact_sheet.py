"""Sheets: every picture in its place, hard pairs as comparing all with all finds them, names that are safe as files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from saga_ray.data import load_dataset
from saga_ray.data.inspect.contact_sheet import class_sheet, hard_pairs, sheet_name
from tests.data.test_shards import config_of
from tests.data.trees import class_folders


def all_with_all(embeddings_NE: np.ndarray, labels_N: np.ndarray, num_pairs: int) -> list[tuple[int, int, float]]:
    """The slow twin of `hard_pairs`."""
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for a, b in combinations(range(len(labels_N)), 2):
        lengths = np.linalg.norm(embeddings_NE[a]) * np.linalg.norm(embeddings_NE[b])
        if labels_N[a] != labels_N[b] and lengths > 0:
            classes = tuple(sorted((int(labels_N[a]), int(labels_N[b]))))
            found = (-round(float(embeddings_NE[a] @ embeddings_NE[b] / lengths), 9), a, b)
            best[classes] = min(best.get(classes, found), found)
    return [(a, b, -cosine) for cosine, a, b in sorted(best.values())[:num_pairs]]


@pytest.mark.parametrize("seed", range(8))
def test_hard_pairs_are_those_of_comparing_all_with_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Distinct cosines: rounding decides no tie.
    embeddings_NE = generator.normal(size=(30, 5))
    embeddings_NE[generator.integers(30)] = 0  # a broken image
    labels_N = generator.integers(0, 6, 30)
    found, wanted = hard_pairs(embeddings_NE, labels_N, 10), all_with_all(embeddings_NE, labels_N, 10)
    assert [pair[:2] for pair in found] == [pair[:2] for pair in wanted]
    assert np.allclose([pair[2] for pair in found], [pair[2] for pair in wanted], atol=1e-9)


def test_equal_pictures_of_two_classes_tie_to_the_lower_rows() -> None:
    embeddings_NE = np.tile([[3.0, 4.0]], (6, 1))
    assert [pair[:2] for pair in hard_pairs(embeddings_NE, np.array([0, 0, 1, 1, 2, 2]), 5)] == [(0, 2), (0, 4), (2, 4)]
    assert hard_pairs(embeddings_NE, np.zeros(6, int), 5) == []


def test_a_class_sheet_shows_every_image_in_order(tmp_path: Path) -> None:
    class_folders(tmp_path, {f"c{i}": 5 for i in range(4)})
    table = load_dataset(config_of("folder", tmp_path)).test
    sheet_HWC = class_sheet(table, 1, size=16, num_columns=3)
    assert sheet_HWC.shape == (2 * 20 + 4, 3 * 20 + 4, 3)
    rows = np.flatnonzero(table.labels_N == 1).tolist()
    for number, image_HWC in enumerate(table.source.load(rows, 16)):
        top, left = 4 + 20 * (number // 3), 4 + 20 * (number % 3)
        assert np.array_equal(sheet_HWC[top : top + 16, left : left + 16], image_HWC)
    assert (sheet_HWC[24:, 44:] == 255).all(), "no sixth image"


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "F/A-18", "", "..", "con\n<b>", "x" * 300, "鳥"])
def test_names_of_classes_are_safe_as_files(name: str) -> None:
    file = sheet_name(7, name)
    assert file.startswith("0007-") and file.endswith(".png") and len(file) < 100
    assert "/" not in file and ".." not in file and file.isascii() and file.isprintable()
