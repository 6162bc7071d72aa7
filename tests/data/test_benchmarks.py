"""The four benchmarks, read from small trees in exactly the formats of their owners."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.data.aircraft import aircraft_dataset
from saga_ray.data.cars import cars_dataset
from saga_ray.data.cub import cub_dataset
from saga_ray.data.images import decode
from saga_ray.data.inat import inat_dataset
from saga_ray.data.benchmark import benchmark_dataset
from saga_ray.data.tree import Found
from saga_ray.types import Dataset
from tests.data.trees import aircraft_tree, cars_tree, class_folders, cub_tree, inat_tree, small_config

BIRDS = {
    1: "Black_footed_Albatross",
    2: "Laysan_Albatross",
    50: "Eared_Grebe",
    101: "White_Pelican",
    110: "Geococcyx",
    200: "Common_Yellowthroat",
}
CARS = [
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Ram C/V Cargo Van, Minivan 2012",
    "smart fortwo Convertible 2012",
    "Audi R8",
    "BMW X5",
]
AVES = [f"{3111 + i:05d}_Animalia_Chordata_Aves_Order_Family_Genus_species{i}" for i in range(6)]
OTHERS = [
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
    "05000_Animalia_Chordata_Mammalia_O_F_G_s",
]


def partial(root, **changes):
    return small_config(root, verify_counts=False, **changes)


def splits(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {name: dataset.split(name).class_names for name in ("train", "validation", "test")}


def every_image_decodes(dataset: Dataset) -> None:
    for name in ("train", "validation", "test"):
        table = dataset.split(name)
        assert len(table.labels_N) == len(table)
        assert set(table.labels_N.tolist()) == set(range(len(table.class_names)))
        assert table.source.load(range(len(table)), 8).shape == (len(table), 8, 8, 3)
    ids = dataset.train.image_ids + dataset.validation.image_ids + dataset.test.image_ids
    assert len(set(ids)) == len(ids)


# CUB-200-2011


def test_cub_splits_by_class_number_from_folder_or_parent(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    dataset = cub_dataset(partial(folder))
    assert dataset.train.class_names == ("001.Black_footed_Albatross", "050.Eared_Grebe")
    assert dataset.validation.class_names == ("002.Laysan_Albatross",)
    assert dataset.test.class_names == ("101.White_Pelican", "110.Geococcyx", "200.Common_Yellowthroat")
    assert dataset.partial and dataset.name == "cub"
    every_image_decodes(dataset)
    assert cub_dataset(partial(tmp_path)).fingerprint == dataset.fingerprint


def test_cub_joins_images_and_labels_by_number_not_by_line(tmp_path):
    dataset = cub_dataset(partial(cub_tree(tmp_path, BIRDS)))
    for image_id, label in zip(dataset.test.image_ids, dataset.test.labels_N, strict=True):
        assert image_id.startswith(dataset.test.class_names[label] + "/")


def test_cub_refuses_other_counts_and_says_how_to_go_on(tmp_path):
    cub_tree(tmp_path, BIRDS)
    with pytest.raises(ValueError) as caught:
        cub_dataset(small_config(tmp_path))
    sentence = str(caught.value)
    assert "cub: " in sentence and "3 training classes with 9 images and 3 test classes with 9" in sentence
    assert "published are 100 training classes with 5,864 images and 100 test classes with 5,924" in sentence
    assert "--set data.verify_counts=false" in sentence and "partial" in sentence and "\n" not in sentence


def test_cub_images_that_are_listed_but_missing(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    victim = next((folder / "images" / "101.White_Pelican").iterdir())
    victim.unlink()
    with pytest.raises(
        ValueError, match=f"1 listed images are not in .* the first is images/101.White_Pelican/{victim.name}"
    ):
        cub_dataset(small_config(tmp_path))
    assert len(cub_dataset(partial(tmp_path)).test) == 8


def test_a_tree_with_classes_of_one_half_only_is_split_anew(tmp_path):
    dataset = cub_dataset(partial(cub_tree(tmp_path, {i: f"Bird_{i}" for i in range(1, 9)})))
    assert splits(dataset)["test"] == tuple(f"{i:03d}.Bird_{i}" for i in range(5, 9)) and dataset.partial


def test_cub_files_that_do_not_belong_together(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    (folder / "image_class_labels.txt").write_text("1 1\n999 2\n")
    with pytest.raises(ValueError, match="image 999 of class 2 is not in"):
        cub_dataset(partial(tmp_path))
    (folder / "images.txt").write_text("1 a.jpg\nno number here\n")
    with pytest.raises(ValueError, match=r"images\.txt, line 2: 'no number here' is not 'number text'"):
        cub_dataset(partial(tmp_path))


def test_a_listing_cannot_lead_out_of_the_folder(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    text = (folder / "images.txt").read_text().replace("1 001.Black_footed_Albatross/", "1 ../../../", 1)
    (folder / "images.txt").write_text(text)
    with pytest.raises(ValueError, match="leads out of"):
        cub_dataset(partial(tmp_path))


# Cars-196


@pytest.mark.parametrize("layout", ["one list", "devkit", "kaggle"])
def test_cars_are_read_from_every_layout_in_the_owners_order(tmp_path, layout):
    cars_tree(tmp_path / "stanford_cars", layout, CARS)
    for root in (tmp_path, tmp_path / "stanford_cars"):
        dataset = cars_dataset(partial(root))
        # Six classes are all below 98: split anew, in the order of their numbers, which is not the alphabet's.
        assert dataset.train.class_names == (CARS[0], CARS[2]) and dataset.validation.class_names == (CARS[1],)
        assert dataset.test.class_names == tuple(CARS[3:])
        assert dataset.partial and len(dataset.train) == 8
        every_image_decodes(dataset)


def test_cars_of_the_published_halves(tmp_path):
    cars_tree(tmp_path, "one list", [f"Car {i:03d}" for i in range(1, 105)], num_images=2)
    dataset = cars_dataset(partial(tmp_path))
    assert len(dataset.train.class_names) + len(dataset.validation.class_names) == 98
    assert dataset.test.class_names == tuple(f"Car {i:03d}" for i in range(99, 105))


def test_cars_without_test_labels(tmp_path):
    cars_tree(tmp_path, "devkit", CARS)
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "devkit" / "cars_test_annos_withlabels.mat")
    assert len(cars_dataset(partial(tmp_path)).test) == 12
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels\.mat is neither in"):
        cars_dataset(partial(tmp_path))


def test_cars_with_damaged_or_other_mat_files(tmp_path):
    cars_tree(tmp_path, "one list", CARS)
    good = (tmp_path / "cars_annos.mat").read_bytes()
    for damaged in (b"<html>404</html>", b"", good[:200]):
        (tmp_path / "cars_annos.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cars_annos\.mat") as caught:
            cars_dataset(partial(tmp_path))
        assert str(caught.value).startswith("data.root: ")


def test_cars_of_an_unknown_kaggle_folder(tmp_path):
    cars_tree(tmp_path, "kaggle", CARS)
    (tmp_path / "car_data" / "car_data" / "train" / "Trabant").mkdir()
    with pytest.raises(ValueError, match="Trabant is not a class of"):
        cars_dataset(partial(tmp_path))


# FGVC-Aircraft

TRAP = ["CRJ-200", "CRJ-700", "CRJ-900", "Cessna 172", "Cessna 208", "Cessna 525", "Cessna 560", "Challenger 600"]


def test_the_aircraft_halves_follow_code_points_as_the_owners_list_does(tmp_path):
    # 45 variants stand before these eight, as many as in the owner's list of 100 with 47 behind.
    before, behind = [f"7{i:02d}-100" for i in range(45)], [f"DC-{i:02d}" for i in range(47)]
    aircraft_tree(tmp_path, before + TRAP + behind, num_images=2)
    dataset = aircraft_dataset(partial(tmp_path))
    trained = set(dataset.train.class_names + dataset.validation.class_names)
    assert set(TRAP[:5]) <= trained and set(TRAP[5:]) <= set(dataset.test.class_names)
    assert len(trained) == 50 and len(dataset.test.class_names) == 50


def test_aircraft_pools_trainval_and_test_keeps_leading_zeros_and_names_with_slashes(tmp_path):
    data = aircraft_tree(tmp_path, ["F/A-18", "DHC-8-100", "Model B200", "Boeing 717", "An-12", "Saab 340"])
    for root in (data, data.parent, tmp_path):
        dataset = aircraft_dataset(partial(root))
        assert splits(dataset) == {
            "train": ("An-12", "DHC-8-100"),
            "validation": ("Boeing 717",),
            "test": ("F/A-18", "Model B200", "Saab 340"),
        }
        assert dataset.test.image_ids[:4] == ("0034309", "0034310", "0034311", "0034312")
        every_image_decodes(dataset)


def test_the_aircraft_banner_is_cut_off(tmp_path):
    data = aircraft_tree(tmp_path, ["A", "B", "C", "D"])
    image = aircraft_dataset(partial(tmp_path)).test.source.load([0], 16)[0]
    assert image.min() > 240
    assert decode(data / "images" / "0034309.jpg", 16)[-1].max() < 15


def test_an_incomplete_aircraft_tree_keeps_the_published_halves(tmp_path):
    variants = [f"V-{i:03d}" for i in range(100)]
    data = aircraft_tree(tmp_path, variants[:3] + variants[95:98])
    (data / "variants.txt").write_text("\n".join(variants) + "\n")
    assert splits(aircraft_dataset(partial(tmp_path)))["test"] == ("V-095", "V-096", "V-097")


def test_aircraft_files_that_are_damaged(tmp_path):
    data = aircraft_tree(tmp_path, ["A", "B", "C", "D"])
    (data / "images_variant_test.txt").write_text("1234567\n")
    with pytest.raises(ValueError, match=r"images_variant_test\.txt, line 1: '1234567' is not 'image variant'"):
        aircraft_dataset(partial(tmp_path))


# iNat-Aves


def test_inat_takes_birds_alone_in_the_order_of_their_folders(tmp_path):
    inat_tree(tmp_path, [OTHERS[0], *AVES, OTHERS[1]])
    for root in (tmp_path, tmp_path / "train_mini"):
        dataset = inat_dataset(partial(root))
        assert splits(dataset) == {"train": (AVES[0], AVES[2]), "validation": (AVES[1],), "test": tuple(AVES[3:])}
        every_image_decodes(dataset)


def test_inat_reads_the_coco_file_where_folders_do_not_say_the_species(tmp_path):
    inat_tree(tmp_path, [OTHERS[0], *AVES], flat=True)
    dataset = inat_dataset(partial(tmp_path))
    assert splits(dataset)["test"] == tuple(AVES[3:]) and len(dataset.test) == 9
    assert sorted(dataset.test.image_ids) == [f"files/{i:04d}.jpg" for i in range(12, 21)]
    every_image_decodes(dataset)


def test_inat_halves_are_743_and_743():
    names = [f"{i:05d}_Animalia_Chordata_Aves_x" for i in range(1486)]
    assert names == sorted(names)
    from saga_ray.data import inat

    assert (743, Published(743, 743 * 50, 743, 743 * 50)) == (inat.NUM_TRAIN_CLASSES, inat.PUBLISHED)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"images": []}), "\x00"])
def test_inat_with_a_damaged_coco_file(tmp_path, content):
    (tmp_path / "train_mini.json").write_text(content)
    with pytest.raises(ValueError, match=r"data\.root: .*train_mini\.json"):
        inat_dataset(partial(tmp_path))


# All four

READERS = {"cub": cub_dataset, "cars": cars_dataset, "aircraft": aircraft_dataset, "inat-aves": inat_dataset}


@pytest.mark.parametrize("name", READERS)
def test_another_folder_is_refused_in_one_sentence(tmp_path, name):
    class_folders(tmp_path / "other", {"a": 2})
    for root in ("other", "gone"):
        with pytest.raises(ValueError) as caught:
            READERS[name](small_config(tmp_path / root))
        sentence = str(caught.value)
        assert sentence.startswith("data.root: ") and "--data-root DIR" in sentence and "\n" not in sentence


@pytest.mark.parametrize("name", READERS)
def test_load_dataset_reads_a_partial_tree(tmp_path, name):
    make = {
        "cub": lambda: cub_tree(tmp_path, BIRDS),
        "cars": lambda: cars_tree(tmp_path, "devkit", CARS),
        "aircraft": lambda: aircraft_tree(tmp_path, TRAP),
        "inat-aves": lambda: inat_tree(tmp_path, AVES),
    }
    make[name]()
    overrides = {"data.root": str(tmp_path), "data.verify_counts": False}
    dataset = load_dataset(resolve(name, recipe="demo", method="pretrained", overrides=overrides))
    assert dataset.partial and dataset.name == name
    with pytest.raises(ValueError, match=r"data\.verify_counts=false"):
        load_dataset(resolve(name, recipe="demo", method="pretrained", overrides={"data.root": str(tmp_path)}))


def test_counts_as_published_are_complete(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 3, "c": 2, "d": 2})
    images = {name: [(f"{name}/{i}.jpg",) * 2 for i in range(3 if name == "b" else 2)] for name in "abcd"}
    found = Found("cub", tmp_path, images, frozenset("ab"))
    assert not benchmark_dataset(found, Published(2, 5, 2, 4), small_config(tmp_path)).partial
    with pytest.raises(ValueError, match="2 training classes with 5 images"):
        benchmark_dataset(found, Published(2, 6, 2, 4), small_config(tmp_path))


def test_partial_trees_still_need_pairs(tmp_path):
    cub_tree(tmp_path, BIRDS, num_images=1)
    with pytest.raises(ValueError, match="class\\(es\\) have a single image"):
        cub_dataset(partial(tmp_path))
    shutil.rmtree(tmp_path / "CUB_200_2011")
    cub_tree(tmp_path, {1: "A", 2: "B", 101: "C"})
    with pytest.raises(ValueError, match="has 3 class\\(es\\)"):
        cub_dataset(partial(tmp_path))


def test_pixels_come_from_the_listed_file(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    table = cub_dataset(partial(folder)).test
    np.testing.assert_array_equal(table.source.load([4], 16)[0], decode(folder / "images" / table.image_ids[4], 16))
