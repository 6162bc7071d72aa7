from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.encoder.encoder import build_encoder
from saga_ray.train.context import LocalContext
from saga_ray.train.embed import class_centroids, embed_centroids, embed_table
from saga_ray.types import Dataset, ImageSource
from tests.train.small import small_run_config

CPU = LocalContext(torch.device("cpu"))


class OneBroken:
    """A source in which one row cannot be read."""

    def __init__(self, source: ImageSource, broken: int) -> None:
        self.source, self.broken = source, broken

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        if self.broken in rows:
            raise BrokenImageError("broken.jpg", "truncated")
        return self.source.load(rows, size)


def test_chunks_do_not_matter_and_a_broken_image_is_named_or_skipped(mllm: Path, dataset: Dataset) -> None:
    encoder = build_encoder(small_run_config(mllm, mllm__dtype="float64"))
    table = dataset.test
    whole_NE = embed_table(encoder, table, 32, 100, CPU)
    assert whole_NE.shape == (12, 64) and whole_NE.dtype == np.float64
    np.testing.assert_allclose(embed_table(encoder, table, 32, 5, CPU), whole_NE, atol=1e-12)
    with_broken = replace(table, source=OneBroken(table.source, 7))
    with pytest.raises(BrokenImageError, match=r"broken\.jpg"):
        embed_table(encoder, with_broken, 32, 5, CPU)
    skipped_NE = embed_table(encoder, with_broken, 32, 5, CPU, skip_broken=True)
    assert not skipped_NE[7].any()
    np.testing.assert_allclose(np.delete(skipped_NE, 7, 0), np.delete(whole_NE, 7, 0), atol=1e-12)


def test_centroids_are_means_over_the_images_that_could_be_read() -> None:
    embeddings_NE = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [3.0, 4.0]], dtype=np.float32)
    centroids_CE = class_centroids(embeddings_NE, np.array([0, 0, 0, 1]))
    assert centroids_CE.tolist() == [[0.5, 0.5], [3.0, 4.0]] and centroids_CE.dtype == np.float64


def test_centroids_summed_in_parts_are_those_of_all_embeddings_at_once(
    mllm: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build_encoder(small_run_config(mllm))
    table = replace(dataset.test, source=OneBroken(dataset.test.source, 7))
    expected_CE = class_centroids(embed_table(encoder, table, 32, 2, CPU, skip_broken=True), table.labels_N)
    monkeypatch.setattr("saga_ray.train.embed._CHUNKS_AT_ONCE", 2)
    np.testing.assert_array_equal(embed_centroids(encoder, table, np.arange(12), 32, 2, CPU), expected_CE)
    some_CE = embed_centroids(encoder, table, np.array([0, 1, 5]), 32, 2, CPU)
    assert some_CE.shape == expected_CE.shape and not np.array_equal(some_CE, expected_CE)
