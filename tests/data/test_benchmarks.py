"""What the readers of all four benchmarks promise; the formats have files of their own."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.data.benchmarks.aircraft import aircraft_dataset
from saga_ray.data.benchmarks.cars import cars_dataset
from saga_ray.data.benchmarks.cub import cub_dataset
from saga_ray.data.benchmarks.inat import inat_dataset
from saga_ray.data.pixels.images import decode
from tests.data.trees import (
    AIRCRAFT,
    AVES,
    BIRDS,
    CARS,
    aircraft_tree,
    cars_tree,
    class_folders,
    cub_tree,
    every_image_decodes,
    inat_tree,
    partial,
    small_config,
    splits,
)

READERS = {"cub": cub_dataset, "cars": cars_dataset, "aircraft": aircraft_dataset, "inat-aves": inat_dataset}
TREES = {
    "cub": lambda root: cub_tree(root, BIRDS),
    "cars": lambda root: cars_tree(root, "devkit", CARS),
    "aircraft": lambda root: aircraft_tree(root, AIRCRAFT),
    "inat-aves": lambda root: inat_tree(root, AVES),
}


@pytest.mark.parametrize("name", READERS)
def test_another_folder_is_refused_in_one_sentence(tmp_path, name):
    class_folders(tmp_path / "other", {"a": 2})
    for root in ("other", "gone"):
        with pytest.raises(ValueError) as caught:
            READERS[name](small_config(tmp_path / root))
        sentence = str(caught.value)
        assert sentence.startswith("data.root: ") and "--data-root DIR" in sentence and "\n" not in sentence


@pytest.mark.parametrize("name", READERS)
def test_an_incomplete_tree_is_refused_and_taken_as_partial_where_counts_are_not_verified(tmp_path, name):
    TREES[name](tmp_path)
    overrides = {"data.root": str(tmp_path), "data.verify_counts": False}
    dataset = load_dataset(resolve(name, recipe="demo", method="pretrained", overrides=overrides))
    assert dataset.partial and dataset.name == name
    assert sum(map(len, splits(dataset).values())) == 6 and len(dataset.test.class_names) >= 3
    every_image_decodes(dataset)
    with pytest.raises(ValueError, match=r"published are .* missing: .*--set data\.verify_counts=false") as caught:
        load_dataset(resolve(name, recipe="demo", method="pretrained", overrides={"data.root": str(tmp_path)}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_tree_of_unknown_classes_is_split_by_the_rule(tmp_path, name):
    make = {
        "cub": lambda: cub_tree(tmp_path, {number: f"Bird_{number}" for number in range(1, 7)}),
        "cars": lambda: cars_tree(tmp_path, "one list", [f"Car {i}" for i in range(6)]),
        "aircraft": lambda: aircraft_tree(tmp_path, [f"Plane {i}" for i in range(6)]),
        "inat-aves": lambda: inat_tree(tmp_path, [f"{i:05d}_Animalia_Chordata_Aves_O_F_G_s" for i in range(6)]),
    }
    make[name]()
    dataset = READERS[name](partial(tmp_path))
    ordered = sorted(sum(splits(dataset).values(), ()))
    assert splits(dataset) == {"train": (ordered[0], ordered[2]), "validation": (ordered[1],), "test": (*ordered[3:],)}
    assert dataset.partial


@pytest.mark.parametrize("name", READERS)
def test_pixels_ids_and_labels_belong_together(tmp_path, name):
    TREES[name](tmp_path)
    table = READERS[name](partial(tmp_path)).test
    assert table.labels_N.tolist() == sorted(table.labels_N.tolist())
    for row in (0, 4, len(table) - 1):
        cut = 20 if name == "aircraft" else 0
        np.testing.assert_array_equal(table.source.load([row], 16)[0], decode(table.source.path(row), 16, cut))


@pytest.mark.parametrize("name", READERS)
def test_the_fingerprint_knows_content_labels_and_preprocessing_but_not_the_place(tmp_path, name):
    TREES[name](tmp_path / "here")
    first = READERS[name](partial(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert READERS[name](partial(tmp_path / "there")).fingerprint == first.fingerprint
    assert READERS[name](partial(tmp_path / "there", image_size=32)).fingerprint != first.fingerprint
    assert READERS[name](partial(tmp_path / "there", validation_share=0.5)).fingerprint == first.fingerprint
    victim = READERS[name](partial(tmp_path / "there")).test.source.path(0)
    content = bytearray(victim.read_bytes())
    content[-10] ^= 1  # of the same size
    victim.write_bytes(content)
    assert READERS[name](partial(tmp_path / "there")).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", READERS)
def test_images_that_are_listed_but_missing(tmp_path, name):
    TREES[name](tmp_path)
    table = READERS[name](partial(tmp_path)).test
    table.source.path(0).unlink()
    again = READERS[name](partial(tmp_path))
    assert len(again.test) == len(table) - 1 and table.image_ids[0] not in again.test.image_ids
    if name != "inat-aves":  # its folders are the list
        with pytest.raises(ValueError, match=rf"1 listed images are not in .* first is {table.source.paths[0]}"):
            READERS[name](small_config(tmp_path))


def test_partial_trees_still_need_pairs(tmp_path):
    cub_tree(tmp_path, BIRDS, num_images=1)
    with pytest.raises(ValueError, match="class\\(es\\) have a single image"):
        cub_dataset(partial(tmp_path))
    shutil.rmtree(tmp_path / "CUB_200_2011")
    cub_tree(tmp_path, {1: "A", 2: "B", 101: "C"})
    with pytest.raises(ValueError, match="has 3 class\\(es\\)"):
        cub_dataset(partial(tmp_path))
