"""The published splits: counts, halves, their order, and that nobody changed them."""

from __future__ import annotations

import logging

import pytest

from saga_ray.data.benchmarks.benchmark import benchmark_dataset
from saga_ray.data.benchmarks.manifests import Manifest, differences, manifest, split_digest
from saga_ray.data.files.tree import Found
from saga_ray.data.splits import carve_validation
from tests.data.trees import class_folders, partial, small_config, splits

PUBLISHED = {
    "cub": (100, 5_864, 100, 5_924),
    "cars": (98, 8_054, 98, 8_131),
    "aircraft": (50, 5_000, 50, 5_000),
    "inat-aves": (743, 37_150, 743, 37_150),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_manifests_have_the_published_counts(name):
    split = manifest(name)
    images = split.images_of_class
    found = (len(split.train), sum(map(images.get, split.train)), len(split.test), sum(map(images.get, split.test)))
    assert found == PUBLISHED[name] and split.num_images == found[1] + found[3]
    assert not set(split.train) & set(split.test) and min(images.values()) >= 2
    assert split.source and (split.known_by == "rule") == (name == "inat-aves")


DIGESTS = {
    "cub": "8a64edda0920763d6346638978200634251e4998152fe37e4903165b39c58f5a",
    "cars": "e6ba93dadee9306cf5bd788a604a2beb745270680b7ec55c0d5aba23abff2041",
    "aircraft": "a7e863500349118bef95cc8a593ea3e2e19944b3116f0844edc1705baee3cf40",
    "inat-aves": "43e947fddc1a2ee2cb12210bb804b0e0ec6133c25a0bfd75989187e7129c17d6",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_split_is_never_changed_by_accident(name):
    assert manifest(name).sha256 == split_digest(manifest(name)) == DIGESTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_validation_classes_of_the_manifest_are_those_of_the_rule(name):
    split = manifest(name)
    _, held = carve_validation(split.num_train_classes, split.validation_share)
    assert split.validation == tuple(split.train[place] for place in held)


def test_classes_stand_in_the_order_that_decides_the_halves():
    for name in ("cub", "aircraft", "inat-aves"):
        ids = list(manifest(name).images_of_class)
        assert ids == sorted(ids), name
    # The owner's numbers of cars are no alphabet.
    assert manifest("cars").train[5:7] == ("Acura Integra Type R 2001", "Acura ZDX Hatchback 2012")
    assert manifest("cars").test[-1] == "smart fortwo Convertible 2012"


def test_sorting_aircraft_without_regard_to_case_would_move_four_variants():
    split = manifest("aircraft")
    careless = sorted(split.images_of_class, key=str.casefold)[:50]
    assert set(split.train) ^ set(careless) == {"CRJ-700", "CRJ-900", "Cessna 560", "Challenger 600"}
    assert {"CRJ-700", "CRJ-900"} <= set(split.train) and {"Cessna 560", "Challenger 600"} <= set(split.test)


def test_birds_are_1486_numbers_in_a_row_cut_into_743_and_743():
    split = manifest("inat-aves")
    assert list(map(int, split.images_of_class)) == list(range(3111, 4597))
    assert (split.split_of("03853"), split.split_of("03854"), split.split_of("03110")) == ("train", "test", None)


def test_differences_name_what_is_missing_unknown_and_of_another_size():
    split = _split({"a": 2, "b": 3, "c": 2, "d": 2}, num_train=2)
    assert differences(split, {"a": 2, "b": 3, "c": 2, "d": 2}) == []
    assert differences(split, {"a": 2, "b": 2, "d": 2, "x": 4}) == [
        "1 class missing: c",
        "1 class unknown: x",
        "1 class of another size: b (2 of 3)",
    ]
    assert differences(split, {}) == ["4 classes missing: a, b, c, ..."]
    assert differences(split.with_total(50), {"a": 2, "b": 3, "c": 2, "d": 2}) == ["9 images instead of 50"]


# Trees against a manifest


def _split(images_of_class: dict[str, int], num_train: int, validation: tuple[str, ...] = ()) -> Manifest:
    return Manifest(
        "cub", "", "names", "", images_of_class, num_train, sum(images_of_class.values()), 0.2, validation, ""
    )


def _found(root, sizes: dict[str, int]) -> Found:
    class_folders(root, sizes)
    return Found("cub", root, {name: [(f"{name}/{i}.jpg",) * 2 for i in range(n)] for name, n in sizes.items()})


def test_a_complete_tree_is_split_as_the_manifest_says(tmp_path):
    # By the rule "b" would be the validation class; a complete tree follows the manifest.
    split = _split({"a": 2, "b": 3, "c": 2, "d": 2, "e": 2}, num_train=3, validation=("c",))
    found = _found(tmp_path, {"a": 2, "b": 3, "c": 2, "d": 2, "e": 2})
    dataset = benchmark_dataset(found, split, small_config(tmp_path))
    assert splits(dataset) == {"train": ("a", "b"), "validation": ("c",), "test": ("d", "e")}
    assert not dataset.partial
    # Another share than the manifest's is carved by the rule.
    dataset = benchmark_dataset(found, split, small_config(tmp_path, validation_share=0.5))
    assert dataset.validation.class_names == ("b",)


def test_other_counts_are_refused_in_one_sentence_that_says_which_and_how_to_go_on(tmp_path):
    split = _split({"a": 2, "b": 3, "c": 2, "d": 2}, num_train=2)
    found = _found(tmp_path, {"a": 2, "b": 2, "c": 2, "x": 2})
    with pytest.raises(ValueError) as caught:
        benchmark_dataset(found, split, small_config(tmp_path))
    sentence = str(caught.value)
    assert sentence.startswith("data.root: cub: ") and "\n" not in sentence
    assert "3 training classes with 6 images and 1 test classes with 2" in sentence
    assert "published are 2 training classes with 5 images and 2 test classes with 4" in sentence
    for words in ("1 class missing: d", "1 class unknown: x", "b (2 of 3)", "--set data.verify_counts=false"):
        assert words in sentence


def test_unknown_classes_of_a_partial_tree_are_split_by_their_order_and_listed(tmp_path, caplog):
    split = _split({"a": 2, "b": 2, "m": 2, "n": 2}, num_train=2)
    found = _found(tmp_path, {"a": 2, "k": 2, "l": 2, "m": 2, "x": 2})
    with caplog.at_level(logging.WARNING):
        dataset = benchmark_dataset(found, split, partial(tmp_path))
    # Known: a trains, m is queried. Unknown: k and l train (the middle one too), x is queried.
    assert dataset.partial and dataset.test.class_names == ("m", "x")
    assert sorted(dataset.train.class_names + dataset.validation.class_names) == ["a", "k", "l"]
    assert "classes split by their order: k, l train; x are queried" in caplog.text


def test_a_tree_of_one_half_is_split_anew(tmp_path, caplog):
    split = _split({name: 2 for name in "abcdefgh"}, num_train=6)
    found = _found(tmp_path, {name: 2 for name in "abcde"})
    with caplog.at_level(logging.WARNING):
        dataset = benchmark_dataset(found, split, partial(tmp_path))
    assert dataset.test.class_names == ("d", "e") and dataset.partial
    assert "a, b, c train; d, e are queried" in caplog.text


def test_an_image_of_two_classes_is_refused(tmp_path):
    found = _found(tmp_path, {name: 2 for name in "abcd"})
    images = dict(found.images_of_class) | {"d": [("a/0.jpg", "a/0.jpg"), ("d/1.jpg", "d/1.jpg")]}
    for config in (small_config(tmp_path), partial(tmp_path)):
        with pytest.raises(ValueError, match=r"image a/0.jpg is listed twice, under 'a' and 'd'"):
            benchmark_dataset(Found("cub", tmp_path, images), _split({"a": 2}, 1), config)
