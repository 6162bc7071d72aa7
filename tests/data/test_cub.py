"""CUB-200-2011 from trees in its owner's format, and one attribute value per group."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_ray.data.benchmarks.cub import cub_dataset
from saga_ray.data.benchmarks.cub_attributes import _words, one_value_each, read_labels
from saga_ray.data.benchmarks.manifests import manifest
from tests.data.trees import BIRDS, cub_tree, every_image_decodes, partial, picture, small_config


def test_splits_by_class_number_from_folder_or_parent(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    dataset = cub_dataset(partial(folder))
    assert dataset.train.class_names == ("001.Black_footed_Albatross", "050.Eared_Grebe")
    assert dataset.validation.class_names == ("002.Laysan_Albatross",)
    assert dataset.test.class_names == ("101.White_Pelican", "110.Geococcyx", "200.Common_Yellowthroat")
    assert dataset.partial and dataset.name == "cub"
    every_image_decodes(dataset)
    assert cub_dataset(partial(tmp_path)).fingerprint == dataset.fingerprint


def test_a_complete_tree_has_the_published_halves_and_the_validation_classes_of_the_manifest(tmp_path):
    # 11,788 names of one picture: links cost next to nothing.
    folder, original = tmp_path / "CUB_200_2011", picture(tmp_path / "bird.jpg", 0, size=(4, 3))
    lines, labels, image = [], [], 0
    for number, (name, count) in enumerate(manifest("cub").images_of_class.items(), 1):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            image += 1
            (folder / "images" / name / f"{i}.jpg").hardlink_to(original)
            lines.append(f"{image} {name}/{i}.jpg\n")
            labels.append(f"{image} {number}\n")
    (folder / "images.txt").write_text("".join(lines))
    (folder / "image_class_labels.txt").write_text("".join(labels))
    names = enumerate(manifest("cub").images_of_class, 1)
    (folder / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in names))
    dataset = cub_dataset(small_config(tmp_path))
    assert not dataset.partial and (len(dataset.train) + len(dataset.validation), len(dataset.test)) == (5864, 5924)
    assert dataset.validation.class_names == manifest("cub").validation and dataset.train.truth_NA is None
    (folder / "images" / "105.Whip_poor_Will" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 listed images are not in .*105\.Whip_poor_Will/0\.jpg"):
        cub_dataset(small_config(tmp_path))
    (folder / "images.txt").write_text("".join(line for line in lines if "105.Whip_poor_Will/0.jpg" not in line))
    kept = [label for line, label in zip(lines, labels, strict=True) if "105.Whip_poor_Will/0.jpg" not in line]
    (folder / "image_class_labels.txt").write_text("".join(kept))
    with pytest.raises(ValueError, match=r"1 class of another size: 105\.Whip_poor_Will \(48 of 49\)"):
        cub_dataset(small_config(tmp_path))


def test_images_and_labels_are_joined_by_number_not_by_line(tmp_path):
    dataset = cub_dataset(partial(cub_tree(tmp_path, BIRDS)))
    for image_id, label in zip(dataset.test.image_ids, dataset.test.labels_N, strict=True):
        assert image_id.startswith(dataset.test.class_names[label] + "/")


def test_files_that_do_not_belong_together(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    (folder / "image_class_labels.txt").write_text("1 1\n999 2\n")
    with pytest.raises(ValueError, match="image 999 of class 2 is not in"):
        cub_dataset(partial(tmp_path))
    (folder / "images.txt").write_text("1 a.jpg\nno number here\n")
    with pytest.raises(ValueError, match=r"images\.txt, line 2: 'no number here' is not 'number text'"):
        cub_dataset(partial(tmp_path))
    (folder / "classes.txt").write_text("1 001.A\n2 001.A\n")
    with pytest.raises(ValueError, match=r"classes\.txt names the class '001\.A' twice"):
        cub_dataset(partial(tmp_path))


def test_a_listing_cannot_lead_out_of_the_folder(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    text = (folder / "images.txt").read_text().replace("1 001.Black_footed_Albatross/", "1 ../../../", 1)
    (folder / "images.txt").write_text(text)
    with pytest.raises(ValueError, match="leads out of"):
        cub_dataset(partial(tmp_path))


# Attributes


@pytest.mark.parametrize("place", ["beside", "inside", "in attributes"])
def test_attributes_become_truth_wherever_their_names_lie(tmp_path, place):
    folder = cub_tree(tmp_path, BIRDS)
    target = {"beside": tmp_path, "inside": folder, "in attributes": folder / "attributes"}[place] / "attributes.txt"
    (tmp_path / "attributes.txt").rename(target)
    dataset = cub_dataset(partial(folder))
    assert dataset.attribute_names == ("bill shape", "wing color", "size")
    assert dataset.attribute_values == (
        ("curved", "hooked seabird"),
        ("black", "white", "buff"),
        ("medium",),
    )
    for table in (dataset.train, dataset.validation, dataset.test):
        assert table.truth_NA.shape == (len(table), 3) and table.truth_NA.dtype == np.int64
        assert (table.truth_NA >= -1).all()
        assert (table.truth_NA < [len(values) for values in dataset.attribute_values]).all()


def test_truth_follows_the_images_and_is_no_part_of_the_fingerprint(tmp_path):
    folder = cub_tree(tmp_path, BIRDS)
    number = {line.split()[1]: int(line.split()[0]) for line in (folder / "images.txt").read_text().splitlines()}
    lines = [f"{image} {4 if image % 2 else 3} 1 4 2.0\n" for image in sorted(number.values())]
    with_random = cub_dataset(partial(tmp_path))
    (folder / "attributes" / "image_attribute_labels.txt").write_text("".join(lines))
    dataset = cub_dataset(partial(tmp_path))
    for table in (dataset.train, dataset.validation, dataset.test):
        for image_id, truth_A in zip(table.image_ids, table.truth_NA, strict=True):
            assert truth_A.tolist() == [-1, 1 if number[image_id] % 2 else 0, -1]
    assert dataset.fingerprint == with_random.fingerprint
    (tmp_path / "attributes.txt").unlink()
    without = cub_dataset(partial(tmp_path))
    assert without.fingerprint == dataset.fingerprint and without.attribute_names == ()
    assert without.test.truth_NA is None


def test_lines_with_columns_too_many_are_read_by_their_first_four(tmp_path, caplog):
    path = tmp_path / "image_attribute_labels.txt"
    path.write_text("1 1 1 4 2.5\n2275 10 0 3 0 1.509\n2275 11 1 4 0 0 3.1\n1 2 0 3 0.05\n")
    assert read_labels(path).tolist() == [[1, 1, 1, 4], [1, 2, 0, 3], [2275, 10, 0, 3], [2275, 11, 1, 4]]
    assert caplog.text == ""
    path.write_text("1 1 1 4 2.5\n1 2\n\n1 three 0 3 1.0\n1 2 0 3 1.0 9\n")
    with caplog.at_level(logging.WARNING):
        assert read_labels(path).tolist() == [[1, 1, 1, 4], [1, 2, 0, 3]]
    assert "2 lines are no labels" in caplog.text


@pytest.mark.parametrize(
    ("value", "part", "words"),
    [
        ("curved_(up_or_down)", "bill", "curved"),
        ("very_large_(32_-_72_in)", "size", "very large"),
        ("fan-shaped_tail", "tail", "fan-shaped"),
        ("rounded-wings", "wing", "rounded"),
        ("about_the_same_as_head", "bill", "about the same as head"),
        ("upright-perching_water-like", "shape", "upright-perching water-like"),
        ("unique_pattern", "head", "unique pattern"),
    ],
)
def test_values_are_written_as_the_vocabulary_writes_them(value, part, words):
    assert _words(value, part) == words


def test_a_damaged_list_of_attributes_is_named(tmp_path):
    cub_tree(tmp_path, BIRDS)
    (tmp_path / "attributes.txt").write_text("1 has_bill_shape\n")
    with pytest.raises(ValueError, match=r"attributes\.txt: attribute 1, 'has_bill_shape', is not 'group::value'"):
        cub_dataset(partial(tmp_path))


PLACES = {1: (0, 0), 2: (0, 1), 5: (1, 0), 7: (1, 1), 9: (1, 2)}


@pytest.mark.parametrize(
    ("lines", "values"),
    [
        ([(1, 1, 1, 4), (1, 2, 0, 4)], [0, -1]),
        ([(1, 1, 1, 3), (1, 2, 1, 4)], [1, -1]),  # the surer one
        ([(1, 1, 1, 4), (1, 2, 1, 4)], [-1, -1]),  # both definitely: two values, so none
        ([(1, 1, 1, 2), (1, 2, 0, 4)], [-1, -1]),  # a guess is no truth
        ([(1, 1, 1, 1)], [-1, -1]),  # not visible
        ([(1, 7, 1, 3), (1, 7, 1, 4), (1, 5, 1, 3)], [-1, 1]),  # two workers said the same
        ([], [-1, -1]),
    ],
)
def test_the_surest_value_that_stands_alone_counts(lines, values):
    labels_M4 = np.array(lines, np.int64).reshape(-1, 4)
    assert one_value_each(labels_M4, [1], PLACES, 2).tolist() == [values]


def slow_values(lines, numbers):
    """Image by image and group by group."""
    out = []
    for number in numbers:
        row = []
        for group in range(2):
            sure = {}
            for image, attribute, present, certainty in lines:
                if image == number and present and certainty >= 3 and PLACES[attribute][0] == group:
                    value = PLACES[attribute][1]
                    sure[value] = max(certainty, sure.get(value, 0))
            best = [value for value in sure if sure[value] == max(sure.values())]
            row.append(best[0] if len(best) == 1 else -1)
        out.append(row)
    return out


LINES = st.tuples(st.sampled_from([3, 8, 9]), st.sampled_from(list(PLACES)), st.integers(0, 1), st.integers(1, 4))


@given(st.lists(LINES, max_size=40))
@settings(max_examples=100, deadline=None)
def test_values_equal_those_of_the_slow_twin(lines):
    labels_M4 = np.array(lines, np.int64).reshape(-1, 4)
    assert one_value_each(labels_M4, [3, 8, 9], PLACES, 2).tolist() == slow_values(lines, [3, 8, 9])
