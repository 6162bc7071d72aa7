"""The birds of iNaturalist 2021, from folders and from the COCO file, which is read in pieces."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_ray.data.benchmarks import coco, inat
from saga_ray.data.benchmarks.coco import elements
from saga_ray.data.benchmarks.inat import inat_dataset
from saga_ray.data.benchmarks.manifests import manifest
from tests.data.trees import AVES, OTHERS, class_folders, every_image_decodes, inat_tree, partial, small_config, splits


def test_birds_alone_are_taken_in_the_order_of_their_folders(tmp_path):
    inat_tree(tmp_path, [OTHERS[0], *AVES, OTHERS[1]])
    first = inat_dataset(partial(tmp_path))
    assert splits(first) == {"train": (AVES[0], AVES[2]), "validation": (AVES[1],), "test": tuple(AVES[3:])}
    assert first.test.image_ids[0] == f"{AVES[3]}/0012-0.jpg"
    every_image_decodes(first)
    assert inat_dataset(partial(tmp_path / "train_mini")).fingerprint == first.fingerprint


def test_the_coco_file_is_read_where_folders_do_not_say_the_species(tmp_path):
    inat_tree(tmp_path / "flat", [OTHERS[0], *AVES], flat=True)
    dataset = inat_dataset(partial(tmp_path / "flat"))
    assert splits(dataset)["test"] == tuple(AVES[3:]) and len(dataset.test) == 9
    assert dataset.test.source.paths[:2] == ("files/0012-0.jpg", "files/0013-1.jpg")
    every_image_decodes(dataset)
    inat_tree(tmp_path / "folders", [OTHERS[0], *AVES])
    assert inat_dataset(partial(tmp_path / "folders")).fingerprint == dataset.fingerprint, "the same data"


def test_halves_go_by_the_owners_numbers_in_a_partial_tree(tmp_path):
    # Two of the training half, four of the other: cutting the list in the middle would train a test species.
    inat_tree(tmp_path, [AVES[0], AVES[1], *(f"0{i}_Animalia_Chordata_Aves_O_F_G_s" for i in range(3854, 3858))])
    dataset = inat_dataset(partial(tmp_path))
    assert len(dataset.test.class_names) == 4 and splits(dataset)["train"] == (AVES[0], AVES[1])


def test_the_full_set_has_the_same_classes_and_a_total_of_its_own(tmp_path, monkeypatch):
    mini = manifest("inat-aves")
    small = {number: 2 for number in (name[:5] for name in AVES)}
    monkeypatch.setattr(
        inat, "manifest", lambda name: replace(mini, images_of_class=small, num_train_classes=3, num_images=12)
    )
    inat_tree(tmp_path, AVES, num_images=3, name="train")
    monkeypatch.setattr(inat, "FULL_IMAGES", 18)
    assert not inat_dataset(small_config(tmp_path)).partial
    monkeypatch.setattr(inat, "FULL_IMAGES", 19)
    with pytest.raises(ValueError, match=r"published are 6 classes with 19 images \(18 images instead of 19\)"):
        inat_dataset(small_config(tmp_path))
    assert inat_dataset(partial(tmp_path)).partial


def test_train_mini_goes_before_train(tmp_path):
    inat_tree(tmp_path, AVES, name="train")
    inat_tree(tmp_path, AVES[:4], name="train_mini")
    assert len(inat_dataset(partial(tmp_path)).train) + len(inat_dataset(partial(tmp_path)).test) < 13
    assert len(inat_dataset(partial(tmp_path / "train")).test) == 9


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"images": []}), "\x00", '{"categories": [1]}'])
def test_a_damaged_coco_file(tmp_path, content):
    (tmp_path / "train_mini.json").write_text(content)
    with pytest.raises(ValueError, match=r"data\.root: .*train_mini\.json") as caught:
        inat_dataset(partial(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_coco_file_cannot_lead_out_of_the_folder(tmp_path):
    inat_tree(tmp_path, AVES, flat=True)
    path = tmp_path / "train_mini.json"
    path.write_text(path.read_text().replace("files/0012-0.jpg", "../0012-0.jpg"))
    with pytest.raises(ValueError, match="leads out of"):
        inat_dataset(partial(tmp_path))
    path.write_text(path.read_text().replace(AVES[0], "../../etc"))
    with pytest.raises(ValueError, match="is no species of birds"):
        inat_dataset(partial(tmp_path))


def test_a_folder_without_birds(tmp_path):
    class_folders(tmp_path / "train_mini", {OTHERS[0]: 2})
    with pytest.raises(ValueError, match="no species of birds found in"):
        inat_dataset(partial(tmp_path))


# The streaming reader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
@settings(max_examples=60, deadline=None)
def test_elements_are_those_of_the_whole_file_wherever_the_window_ends(tmp_path_factory, before, wanted, chunk, indent):
    content = {f"_{key}": value for key, value in before.items()} | {"wanted": wanted, "after": [1]}
    path = tmp_path_factory.mktemp("coco", numbered=True) / "x.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    saved, coco._CHUNK = coco._CHUNK, chunk
    try:
        assert list(elements(path, "wanted")) == wanted
    finally:
        coco._CHUNK = saved


def test_nan_is_a_number_as_in_the_owners_files(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [{"latitude": NaN}]}')
    assert math.isnan(next(elements(tmp_path / "x.json", "images"))["latitude"])


@pytest.mark.parametrize("cut", [1, 20, 60, 90])
def test_a_file_that_ends_early_is_an_error(tmp_path, cut):
    text = json.dumps({"other": [1, {"a": [2]}], "images": [{"id": i} for i in range(9)]})
    (tmp_path / "x.json").write_text(text[:cut])
    with pytest.raises(ValueError, match=r"ends early|damaged"):
        list(elements(tmp_path / "x.json", "images"))


def test_memory_does_not_grow_with_the_file(tmp_path):
    with (tmp_path / "x.json").open("w") as file:
        file.write('{"images": [')
        file.write(",".join(json.dumps({"id": i, "file_name": "x" * 500}) for i in range(20_000)))
        file.write("]}")
    assert (tmp_path / "x.json").stat().st_size > 10e6
    tracemalloc.start()
    try:
        assert sum(1 for _ in elements(tmp_path / "x.json", "images")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()
