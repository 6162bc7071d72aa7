"""FGVC-Aircraft from trees in its owner's format."""

from __future__ import annotations

import pytest

from saga_ray.data.benchmarks.aircraft import aircraft_dataset
from saga_ray.data.benchmarks.manifests import manifest
from saga_ray.data.pixels.images import decode
from tests.data.trees import AIRCRAFT, aircraft_tree, every_image_decodes, partial, small_config, splits


def test_the_halves_are_the_owners_where_sorting_without_regard_to_case_would_move_variants(tmp_path):
    aircraft_tree(tmp_path, list(manifest("aircraft").images_of_class), num_images=2)
    dataset = aircraft_dataset(partial(tmp_path))
    trained = set(dataset.train.class_names + dataset.validation.class_names)
    assert {"CRJ-200", "CRJ-700", "CRJ-900", "Cessna 525"} <= trained
    assert {"Cessna 560", "Challenger 600"} <= set(dataset.test.class_names)
    assert len(trained) == 50 and len(dataset.test.class_names) == 50
    with pytest.raises(ValueError, match=r"100 classes of another size: 707-320 \(2 of 100\)"):
        aircraft_dataset(small_config(tmp_path))


def test_an_incomplete_tree_keeps_the_published_halves(tmp_path):
    aircraft_tree(tmp_path, ["Tornado", "Tu-134", "Yak-42", "707-320", "DC-3", "A380"])
    dataset = aircraft_dataset(partial(tmp_path))
    assert dataset.test.class_names == ("DC-3", "Tornado", "Tu-134", "Yak-42")
    assert dataset.train.class_names == ("707-320", "A380")


def test_trainval_and_test_are_pooled_and_ids_keep_leading_zeros(tmp_path):
    data = aircraft_tree(tmp_path, list(AIRCRAFT))
    for root in (data, data.parent, tmp_path):
        dataset = aircraft_dataset(partial(root))
        assert splits(dataset)["test"] == ("Cessna 560", "Challenger 600", "F-16A/B", "Model B200")
        first = 34309 + 4 * AIRCRAFT.index("Cessna 560")
        assert dataset.test.image_ids[:4] == tuple(f"{first + i:07d}" for i in range(4))
        every_image_decodes(dataset)


def test_the_banner_is_cut_off(tmp_path):
    data = aircraft_tree(tmp_path, list(AIRCRAFT))
    table = aircraft_dataset(partial(tmp_path)).test
    assert table.source.load([0], 16)[0].min() > 240
    assert decode(data / "images" / f"{table.image_ids[0]}.jpg", 16)[-1].max() < 15


def test_files_that_are_damaged(tmp_path):
    data = aircraft_tree(tmp_path, list(AIRCRAFT))
    good = (data / "images_variant_test.txt").read_text()
    (data / "images_variant_test.txt").write_text("1234567\n")
    with pytest.raises(ValueError, match=r"images_variant_test\.txt, line 1: '1234567' is not 'image variant'"):
        aircraft_dataset(partial(tmp_path))
    (data / "images_variant_test.txt").write_text(good + "0034309 DC-3\n")
    with pytest.raises(ValueError, match="image 0034309 is 'DC-3' here and '707-320' before"):
        aircraft_dataset(partial(tmp_path))
