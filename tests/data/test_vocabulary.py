"""The shipped vocabularies, and a sentence for each thing that can be wrong with one's own."""

from __future__ import annotations

import pytest

from saga_ray.config import DATASETS
from saga_ray.data.vocabulary import OF_DATASET, VOCABULARIES, load_vocabulary

GOOD = 'role: chef\nitem: dish\nverdict_key: same_dish\nattributes:\n  colour:\n  taste: [sweet, "sour"]\n'


@pytest.mark.parametrize(
    ("name", "num_attributes", "item", "verdict_key"),
    [
        ("birds", 28, "bird", "same_species"),
        ("cars", 17, "car", "same_model"),
        ("aircraft", 17, "aircraft", "same_variant"),
    ],
)
def test_the_groups_are_as_many_as_published(name, num_attributes, item, verdict_key):
    vocabulary = load_vocabulary(name)
    assert len(vocabulary.attributes) == num_attributes
    assert (vocabulary.item, vocabulary.verdict_key) == (item, verdict_key)
    assert vocabulary.verdict_words == ("yes", "no")


def test_every_data_set_has_a_vocabulary():
    assert set(OF_DATASET) == set(DATASETS)
    assert {load_vocabulary(name).item for name in OF_DATASET.values()} == {"bird", "car", "aircraft", "object"}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_shipped_names_are_lower_case_ascii_and_commas_separate_values(name):
    for attribute, values in load_vocabulary(name).attributes.items():
        assert attribute.isascii() and '"' not in attribute
        assert all("," not in value and value.isascii() for value in values or ())


def test_ones_own_by_path(tmp_path):
    (tmp_path / "dishes.yaml").write_text(GOOD)
    vocabulary = load_vocabulary(tmp_path / "dishes.yaml")
    assert vocabulary.role == "chef" and vocabulary.verdict_words == ("yes", "no")
    assert vocabulary.attributes == {"colour": None, "taste": ("sweet", "sour")}
    (tmp_path / "list.yaml").write_text(GOOD.split("attributes")[0] + "attributes: [colour, taste]\n")
    assert load_vocabulary(tmp_path / "list.yaml").attributes == {"colour": None, "taste": None}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("role: chef\n", ""), "role: None is not a word"),
        (("item: dish", "item: A Dish"), "item is 'A Dish', but becomes part of JSON keys"),
        (("role", "rolle"), "unknown key 'rolle'; did you mean 'role'"),
        (('[sweet, "sour"]', "[sweet]"), "attributes.taste is ['sweet']; list two values"),
        (('[sweet, "sour"]', "[sweet, sweet]"), "attributes.taste names a value twice"),
        (('[sweet, "sour"]', "[yes, no]"), "attributes.taste: True is not a word or phrase; write one in quotes"),
        (('attributes:\n  colour:\n  taste: [sweet, "sour"]\n', "attributes: []\n"), "list at least one name"),
        (("item: dish", "item: dish\nverdict_words: [same]"), "verdict_words is ['same']; give two words"),
        (("item: dish", "item: dish\nitem: meal"), "key 'item' stands twice"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path, change, sentence):
    path = tmp_path / "own.yaml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(ValueError) as caught:
        load_vocabulary(path)
    assert str(caught.value).startswith(str(path)) and sentence in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="vocabulary 'bird' is unknown; did you mean 'birds'"):
        load_vocabulary("bird")
    with pytest.raises(ValueError, match=r"gone\.yaml: cannot be read"):
        load_vocabulary(tmp_path / "gone.yaml")
