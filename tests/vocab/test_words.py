"""Words of CUB's labels and of vocabularies meet, and no two values of a group become one."""

from __future__ import annotations

import pytest

from saga_ray.mllm.vocabulary import load_vocabulary
from saga_ray.vocab.words import normal_name, normal_value

AS_CUB_WRITES = {
    "has_bill_shape": "curved_(up_or_down) dagger hooked needle hooked_seabird spatulate all-purpose cone specialized",
    "has_bill_length": "about_the_same_as_head longer_than_head shorter_than_head",
    "has_tail_shape": "forked_tail rounded_tail notched_tail fan-shaped_tail pointed_tail squared_tail",
    "has_head_pattern": "spotted malar crested masked unique_pattern eyebrow eyering plain eyeline striped capped",
    "has_wing_shape": "rounded-wings pointed-wings broad-wings tapered-wings long-wings",
    "has_size": "large_(16_-_32_in) small_(5_-_9_in) very_large_(32_-_72_in) medium_(9_-_16_in) very_small_(3_-_5_in)",
    "has_shape": "upright-perching_water-like chicken-like-marsh long-legged-like duck-like owl-like gull-like "
    "hummingbird-like pigeon-like tree-clinging-like hawk-like sandpiper-like upland-ground-like swallow-like perching-like",
    "has_breast_pattern": "solid spotted striped multi-colored",
    "has_upper_tail_color": "blue brown iridescent purple rufous grey yellow olive green pink orange black white red buff",
}


@pytest.mark.parametrize("group", AS_CUB_WRITES)
def test_cubs_own_words_are_those_of_the_birds_vocabulary(group: str) -> None:
    birds, _ = load_vocabulary("birds")
    [name] = [name for name in birds.attributes if normal_name(name) == normal_name(group)]
    raw = AS_CUB_WRITES[group].split()
    values = birds.attributes[name]
    assert values is not None
    assert {normal_value(word, group) for word in raw} == {normal_value(value, name) for value in values}
    assert len({normal_value(word, group) for word in raw}) == len(raw) == len(values)


@pytest.mark.parametrize("name", ["birds", "cars", "aircraft", "generic"])
def test_no_two_values_or_names_become_one(name: str) -> None:
    vocabulary, _ = load_vocabulary(name)
    assert len({normal_name(each) for each in vocabulary.attributes}) == len(vocabulary.attributes)
    for attribute, values in vocabulary.attributes.items():
        assert len({normal_value(value, attribute) for value in values or ()}) == len(values or ())


@pytest.mark.parametrize(
    ("value", "name", "normal"),
    [
        ("Grey", "wing color", "gray"),
        ("wing", "wing color", "wing"),  # nothing else would be left
        ("two wing bars", "wing pattern", "two bars"),
        ("very_small_(3_-_5_in)", "size", "very small"),
        ("", "size", ""),
    ],
)
def test_values_worked_by_hand(value: str, name: str, normal: str) -> None:
    assert normal_value(value, name) == normal


def test_names_lose_has_and_spelling() -> None:
    assert normal_name("has_upper_tail_colour") == normal_name("Upper tail color") == "upper tail color"
    assert normal_name("has") == "has"
