"""Folders of classes: splits, fingerprint, and a sentence for each thing that can be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.data.files import fingerprint as fingerprint_module
from saga_ray.data.files.folder import folder_dataset
from saga_ray.data.pixels.images import decode
from tests.data.trees import class_folders, picture, small_config


def refusal(root: Path | str, **changes: object) -> str:
    with pytest.raises(ValueError) as caught:
        folder_dataset(small_config(root, **changes))
    sentence = str(caught.value)
    assert sentence.startswith("data.root: ") and "\n" not in sentence
    return sentence


def test_the_first_half_of_the_sorted_classes_trains_and_the_second_is_queried(tmp_path):
    names = ["owl", "Zebra", "ant", "wren", "crow", "eagle", "heron", "ibis", "jay", "kite"]
    class_folders(tmp_path, {name: 3 for name in names})
    dataset = folder_dataset(small_config(tmp_path))
    assert dataset.train.class_names == ("Zebra", "ant", "eagle", "heron")
    assert dataset.validation.class_names == ("crow",)
    assert dataset.test.class_names == ("ibis", "jay", "kite", "owl", "wren")
    assert not dataset.partial and dataset.name == "folder"


def test_tables_hold_ids_labels_and_pixels(tmp_path):
    class_folders(tmp_path, {name: 2 + i for i, name in enumerate("abcdef")})
    dataset = folder_dataset(small_config(tmp_path))
    table = dataset.test
    assert table.image_ids[:6] == ("d/0.jpg", "d/1.jpg", "d/2.jpg", "d/3.jpg", "d/4.jpg", "e/0.jpg")
    assert table.labels_N.tolist() == [0] * 5 + [1] * 6 + [2] * 7 and table.labels_N.dtype == np.int64
    np.testing.assert_array_equal(table.source.load([5], 16)[0], decode(tmp_path / "e" / "0.jpg", 16))
    ids = dataset.train.image_ids + dataset.validation.image_ids + dataset.test.image_ids
    assert len(set(ids)) == len(ids) == sum(range(2, 8))


def test_other_files_hidden_files_and_empty_folders_are_left_out(tmp_path):
    class_folders(tmp_path, {name: 2 for name in "abcd"})
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden.jpg").write_text("x")
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    dataset = folder_dataset(small_config(tmp_path))
    assert dataset.train.class_names == ("a", "b") and len(dataset.train) == 4


def test_given_splits_are_kept(tmp_path):
    for split, names in {"train": "abc", "validation": "xy", "test": "pq"}.items():
        class_folders(tmp_path / split, {name: 2 for name in names})
    dataset = folder_dataset(small_config(tmp_path))
    assert [dataset.split(s).class_names for s in ("train", "validation", "test")] == [
        tuple("abc"),
        tuple("xy"),
        tuple("pq"),
    ]
    assert dataset.train.image_ids[0] == "train/a/0.jpg"
    shutil.rmtree(tmp_path / "validation")
    assert folder_dataset(small_config(tmp_path)).validation.class_names == ("b",)


@pytest.mark.parametrize("validation", ["val", "valid", "Validation", "dev"])
def test_given_splits_may_be_spelt_otherwise(tmp_path, validation):
    for split, names in {"Train": "abc", validation: "xy", "test": "pq"}.items():
        class_folders(tmp_path / split, {name: 2 for name in names})
    dataset = folder_dataset(small_config(tmp_path))
    assert dataset.validation.class_names == ("x", "y") and dataset.train.class_names == ("a", "b", "c")
    assert dataset.validation.image_ids[0] == f"{validation}/x/0.jpg"
    class_folders(tmp_path / "testing", {"r": 2})
    assert "test and testing both name the test split" in refusal(tmp_path)


def test_classes_that_are_called_train_and_test_are_classes_if_they_hold_images(tmp_path):
    class_folders(tmp_path, {"train": 2, "test": 2, "car": 2, "bus": 2})
    assert folder_dataset(small_config(tmp_path)).test.class_names == ("test", "train")


def test_a_class_in_two_given_splits_is_refused(tmp_path):
    class_folders(tmp_path / "train", {"a": 2, "b": 2})
    class_folders(tmp_path / "test", {"b": 2, "c": 2})
    assert "class 'b' is in test and in train" in refusal(tmp_path)


def test_the_fingerprint_knows_content_names_labels_split_and_size_but_not_the_place(tmp_path):
    sizes = {name: 2 for name in "abcdefgh"}
    class_folders(tmp_path / "one", sizes)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = folder_dataset(small_config(tmp_path / "one")).fingerprint
    assert len(first) == 16 and int(first, 16) >= 0
    assert folder_dataset(small_config(tmp_path / "two")).fingerprint == first
    assert folder_dataset(small_config(tmp_path / "one", image_size=32)).fingerprint != first
    assert folder_dataset(small_config(tmp_path / "one", validation_share=0.5)).fingerprint != first
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "A")
    assert folder_dataset(small_config(tmp_path / "two")).fingerprint != first
    changed = tmp_path / "one" / "h" / "1.jpg"
    content = bytearray(changed.read_bytes())
    content[-10] ^= 1
    changed.write_bytes(content)
    assert folder_dataset(small_config(tmp_path / "one")).fingerprint != first


def test_large_trees_are_known_by_the_sizes_of_their_files(tmp_path, monkeypatch):
    class_folders(tmp_path, {name: 2 for name in "abcd"})
    by_content = folder_dataset(small_config(tmp_path)).fingerprint
    monkeypatch.setattr(fingerprint_module, "MAX_HASHED_BYTES", 100)
    by_size = folder_dataset(small_config(tmp_path)).fingerprint
    assert by_size != by_content
    path = tmp_path / "a" / "0.jpg"
    path.write_bytes(bytes(path.stat().st_size))
    assert folder_dataset(small_config(tmp_path)).fingerprint == by_size
    path.write_bytes(b"")
    assert folder_dataset(small_config(tmp_path)).fingerprint != by_size


def test_a_missing_root_names_the_option(tmp_path):
    assert "does not exist; name the folder of the images with --data-root DIR" in refusal(tmp_path / "gone")
    assert "is not a local folder" in refusal("s3://bucket/birds")


def test_a_file_as_root(tmp_path):
    (tmp_path / "birds.rar").write_bytes(b"Rar!")
    assert "is a file, not a folder and no archive (.tar, .tar.gz," in refusal(tmp_path / "birds.rar")


def test_the_folder_above_is_as_good(tmp_path):
    class_folders(tmp_path / "download" / "pictures", {name: 2 for name in "abcd"})
    above, itself = (folder_dataset(small_config(tmp_path / name)) for name in ("download", "download/pictures"))
    assert above.fingerprint == itself.fingerprint and above.train.image_ids == itself.train.image_ids
    class_folders(tmp_path / "download" / "more", {"e": 2})
    assert "no images found" in refusal(tmp_path / "download"), "which of the two is meant?"


def test_an_empty_root(tmp_path):
    assert "is empty" in refusal(tmp_path)


def test_images_without_class_folders(tmp_path):
    picture(tmp_path / "a.jpg", 1)
    assert "put those of each class into a sub-folder, DIR/<class>/<image>" in refusal(tmp_path)


def test_class_folders_without_images(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert "no images found in" in refusal(tmp_path)


def test_fewer_than_four_classes(tmp_path):
    class_folders(tmp_path, {name: 3 for name in "abc"})
    assert "has 3 class(es) with images, at least 4 are needed" in refusal(tmp_path)


def test_classes_with_one_image_are_named(tmp_path):
    class_folders(tmp_path, {"a": 3, "lonely": 1, "b": 3, "c": 3, "solo": 1})
    sentence = refusal(tmp_path)
    assert "2 class(es) have a single image ('lonely', 'solo')" in sentence and "add images" in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_class_folder_is_named(tmp_path):
    class_folders(tmp_path, {name: 2 for name in "abcd"})
    (tmp_path / "b").chmod(0)
    try:
        assert f"{tmp_path / 'b'} cannot be listed (Permission denied)" in refusal(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_a_file_that_vanishes_is_named(tmp_path):
    class_folders(tmp_path, {name: 2 for name in "abcd"})
    (tmp_path / "b" / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    dataset = folder_dataset(small_config(tmp_path))  # not a file: left out
    assert "b/dangling.jpg" not in dataset.train.image_ids


def test_odd_names_are_kept(tmp_path):
    names = ["<script>alert(1)</script>".replace("/", "_"), "=cmd()", "ünï ☃", "a b", "quote'\"s", "new\nline"]
    class_folders(tmp_path, {name: 2 for name in names})
    dataset = folder_dataset(small_config(tmp_path))
    kept = dataset.train.class_names + dataset.validation.class_names + dataset.test.class_names
    assert sorted(kept) == sorted(names)
    assert dataset.test.source.load([0], 16).shape == (1, 16, 16, 3)


def test_load_dataset_reads_the_folder_of_a_run(tmp_path):
    class_folders(tmp_path, {name: 2 for name in "abcdefgh"})
    config = resolve("folder", method="pretrained", overrides={"data.root": str(tmp_path)})
    assert load_dataset(config).train.class_names == ("a", "b", "d")


def test_a_split_without_classes_cannot_be_evaluated(tmp_path):
    class_folders(tmp_path, {name: 2 for name in "abcd"})
    overrides = {"data.root": str(tmp_path), "evaluation.split": "validation"}
    with pytest.raises(ValueError, match=r"evaluation\.split: 'folder' has too few training classes"):
        load_dataset(resolve("folder", method="pretrained", overrides=overrides))


def test_relative_roots_are_made_absolute_for_workers_elsewhere(tmp_path, monkeypatch):
    class_folders(tmp_path / "birds", {name: 2 for name in "abcd"})
    monkeypatch.chdir(tmp_path)
    assert folder_dataset(small_config("birds")).train.source.root == str((tmp_path / "birds").resolve())
