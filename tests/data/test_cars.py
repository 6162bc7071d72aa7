"""Cars-196 in every layout that is about."""

from __future__ import annotations

import shutil

import pytest

from saga_ray.data.benchmarks.cars import cars_dataset
from saga_ray.data.benchmarks.manifests import manifest
from tests.data.trees import CARS, cars_tree, every_image_decodes, partial, small_config, splits

LAYOUTS = ["one list", "devkit", "nested devkit", "kaggle"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_from_folder_or_parent_with_the_published_halves(tmp_path, layout):
    cars_tree(tmp_path / "stanford_cars", layout, CARS)
    for root in (tmp_path, tmp_path / "stanford_cars"):
        dataset = cars_dataset(partial(root))
        assert dataset.train.class_names == (CARS[0], CARS[2]) and dataset.validation.class_names == (CARS[1],)
        assert dataset.test.class_names == tuple(CARS[3:])
        assert dataset.partial and len(dataset.train) == 8
        every_image_decodes(dataset)


def test_a_nested_devkit_is_the_same_data(tmp_path):
    cars_tree(tmp_path / "a", "devkit", CARS)
    cars_tree(tmp_path / "b", "nested devkit", CARS)
    assert cars_dataset(partial(tmp_path / "a")).fingerprint == cars_dataset(partial(tmp_path / "b")).fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_list_of_196_classes_is_known_by_number_whatever_it_calls_them(tmp_path, layout):
    names = [f"Car {200 - i:03d}" for i in range(196)]
    cars_tree(tmp_path, layout, names, num_images=2, classes=[1, 2, 98, 99, 196])
    dataset = cars_dataset(partial(tmp_path))
    assert set(splits(dataset)["train"] + splits(dataset)["validation"]) == {names[0], names[1], names[97]}
    assert splits(dataset)["test"] == (names[98], names[195])


def test_the_owners_names_are_those_of_the_manifest(tmp_path):
    names = list(manifest("cars").images_of_class)
    cars_tree(tmp_path, "one list", names, num_images=2, classes=[1, 98, 99, 196])
    with pytest.raises(ValueError, match=r"192 classes missing: Acura RL Sedan 2012, .* of another size: AM General"):
        cars_dataset(small_config(tmp_path))


def test_without_test_labels(tmp_path):
    cars_tree(tmp_path, "devkit", CARS)
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "devkit" / "cars_test_annos_withlabels.mat")
    assert len(cars_dataset(partial(tmp_path)).test) == 12
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels\.mat is neither in .*verify_counts=false"):
        cars_dataset(small_config(tmp_path))
    shutil.rmtree(tmp_path / "cars_test")
    assert len(cars_dataset(partial(tmp_path)).test) == 6


def test_damaged_or_other_mat_files(tmp_path):
    cars_tree(tmp_path, "one list", CARS)
    good = (tmp_path / "cars_annos.mat").read_bytes()
    for damaged in (b"<html>404</html>", b"", good[:200]):
        (tmp_path / "cars_annos.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cars_annos\.mat") as caught:
            cars_dataset(partial(tmp_path))
        assert str(caught.value).startswith("data.root: ")


def test_an_unknown_kaggle_folder(tmp_path):
    cars_tree(tmp_path, "kaggle", CARS)
    (tmp_path / "car_data" / "car_data" / "train" / "Trabant").mkdir()
    with pytest.raises(ValueError, match="Trabant is not a class of"):
        cars_dataset(partial(tmp_path))


def test_a_class_that_is_named_twice(tmp_path):
    cars_tree(tmp_path, "kaggle", CARS)
    (tmp_path / "names.csv").write_text("\n".join([*CARS, CARS[0]]))
    with pytest.raises(ValueError, match=f"names the class '{CARS[0]}' twice"):
        cars_dataset(partial(tmp_path))
