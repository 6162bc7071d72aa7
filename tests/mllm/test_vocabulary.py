"""Vocabularies in the package and of one's own, and the prompts that they give."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from saga_ray.config import DATASETS
from saga_ray.configure import ConfigError, from_yaml, resolve, to_yaml
from saga_ray.mllm.prompt import load_prompt, request_text
from saga_ray.mllm.vocabulary import load_vocabulary, parse_vocabulary
from saga_ray.scorer.prompt import prompt_in, run_prompt
from saga_ray.train.evaluate import config_hash

BUNDLED = Path(str(files("saga_ray").joinpath("mllm", "demo", "weights")))
DEMO_PROMPTS = {
    "structured": "fa07c1cf8225b999f8238b68a385f990990fa093b3d86e40b5fb7493ad1ad957",
    "generic": "3ba3f4d38c0a0a3c69f567ad9b463354248530686a926909a2f2048d35562822",
}


def test_the_example_in_the_readme_is_a_vocabulary(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (tmp_path / "leaves.yaml").write_text(readme.partition("```yaml\n")[2].partition("```")[0])
    vocabulary, _ = load_vocabulary(str(tmp_path / "leaves.yaml"))
    assert vocabulary.item == "leaf" and vocabulary.attributes["stalk"] is None and len(vocabulary.attributes) == 3


@pytest.mark.parametrize("variant", DEMO_PROMPTS)
def test_what_the_bundled_mllm_is_asked_never_changes(variant: str) -> None:
    """Records of the demo world were taken with these very words."""
    prompt = load_prompt("demo", variant, BUNDLED)
    assert prompt.texts is not None
    assert hashlib.sha256("\x1f".join(prompt.texts).encode()).hexdigest() == DEMO_PROMPTS[variant]
    assert prompt.max_new_tokens == 48
    assert (len(prompt.attributes), prompt.verdict_key) == (10, "same_species")


GROUPS = (
    "bill shape", "bill length", "bill color", "head pattern", "crown color", "forehead color", "eye color", "nape color",
    "throat color", "breast color", "belly color", "back color", "upperparts color", "underparts color", "wing color",
    "upper tail color", "under tail color", "leg color", "breast pattern", "belly pattern", "back pattern", "wing pattern",
    "tail pattern", "wing shape", "tail shape", "shape", "size", "primary color",
)  # fmt: skip
GOOD = {
    "role": "critic",
    "item": "vase",
    "verdict_key": "same_maker",
    "attributes": {"glaze": ["matt", "gloss"], "foot": None},
}


def written(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_vocabulary(str(path))
    return str(caught.value).splitlines()


def test_birds_are_cubs_28_groups_with_its_312_values() -> None:
    birds, source = load_vocabulary("birds")
    assert tuple(birds.attributes) == GROUPS and source == "vocabulary birds"
    assert sum(len(values or ()) for values in birds.attributes.values()) == 312


@pytest.mark.parametrize(("name", "count"), [("birds", 28), ("cars", 17), ("aircraft", 17), ("generic", 14)])
def test_every_shipped_vocabulary_is_valid(name: str, count: int) -> None:
    vocabulary, _ = load_vocabulary(name)
    assert len(vocabulary.attributes) == count
    if name != "generic":
        assert all(vocabulary.attributes.values()), "the paper's groups come with values"
    assert parse_vocabulary(vocabulary.to_yaml(), "again") == vocabulary


def test_the_bundled_prompt_holds_a_vocabulary_too() -> None:
    own, _ = load_vocabulary(str(BUNDLED / "saga_prompt.yaml"))
    assert own.attributes == load_prompt("demo", "structured", BUNDLED).attributes


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"role": None}, ["role: None is no word"]),
        ({"role": " "}, ["role: ' ' is empty"]),
        ({"item": 3}, ["item: 3 is no word"]),
        ({"item": 'va"se'}, ["item:", "breaks prompt or answer"]),
        ({"colour": "red"}, ["unknown key 'colour'"]),
        ({"atributes": {}}, ["unknown key 'atributes'; did you mean 'attributes'?"]),
        ({"verdict_key": "same maker"}, ["verdict_key: 'same maker'", "letters, digits and underscores"]),
        ({"verdict_key": "differences"}, ["verdict_key: 'differences'"]),
        ({"verdict_key": "maker_1"}, ["verdict_key: 'maker_1'", "marks a description"]),
        ({"attributes": {}}, ["attributes: is empty"]),
        ({"attributes": "glaze"}, ["attributes: 'glaze' is no mapping"]),
        ({"attributes": ["glaze", "foot", "glaze"]}, ["attributes: 'glaze' stands twice"]),
        ({"attributes": {"Foot_rim": None, "foot rim": None}}, ["'foot rim' and 'Foot_rim' are one name"]),
        ({"attributes": {"same maker": None}}, ["'same maker' is the verdict's key"]),
        ({"attributes": {"": None}}, ["attributes: '' is empty"]),
        ({"attributes": {"a<|image_pad|>": None}}, ["holds '<|'"]),
        ({"attributes": {"glaze": []}}, ["attributes.glaze: [] leaves no choice"]),
        ({"attributes": {"glaze": ["matt"]}}, ["attributes.glaze: ['matt'] leaves no choice"]),
        ({"attributes": {"glaze": ["matt", "gloss", "matt"]}}, ["attributes.glaze: value 'matt' stands twice"]),
        ({"attributes": {"glaze": ["Matt_", "matt"]}}, ["value 'matt' and 'Matt_' are one value"]),
        ({"attributes": {"glaze": [True, "matt"]}}, ["attributes.glaze.0: True is no word", "quotes around"]),
        ({"attributes": {"glaze": ["matt, dull", "gloss"]}}, ["value 'matt, dull' holds a comma"]),
        ({"attributes": {"glaze": ["ma\ntt", "gloss"]}}, ["attributes.glaze: value", "breaks prompt or answer"]),
        ({"attributes": {"glaze": "matt"}}, ["attributes.glaze: 'matt' is no list"]),
        ({"attributes": {2: None}}, ["attributes.2: 2 is no word"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_file_and_key(tmp_path: Path, changes: dict, parts: list[str]) -> None:
    path = written(tmp_path / "mine.yaml", **changes)
    [sentence] = mistakes(path)
    assert sentence.startswith(f"{path}: ")
    for part in parts:
        assert part in sentence


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    bad = {"glaze": ["matt", "matt"], "foot": [], "same_maker": None}
    assert len(mistakes(written(tmp_path / "mine.yaml", verdict_key="same_maker", attributes=bad))) == 3


@pytest.mark.parametrize("content", [b"", b"- a\n", b"\xff\xfe", b"a: [1", b"role: a\nrole: b\n"])
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    assert str(tmp_path / "mine.yaml") in mistakes(tmp_path / "mine.yaml")[0]


def test_a_name_that_nobody_knows_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'brds' is neither.*did you mean 'birds'"):
        load_vocabulary("brds")
    with pytest.raises(ConfigError, match=r"prompt\.vocabulary: vocabulary 'nowhere\.yaml'"):
        resolve("demo", overrides={"prompt.vocabulary": "nowhere.yaml"})


def test_a_prompt_asks_for_the_chosen_vocabulary(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.yaml")
    config = resolve("cub", overrides={"data.root": "x", "prompt.vocabulary": str(path)})
    prompt = prompt_in(config, None)
    assert dict(prompt.attributes) == {"glaze": ("matt", "gloss"), "foot": None}
    assert "- glaze (choose from: matt, gloss)\n- foot\n" in request_text(prompt)[1]
    by_name = resolve("folder", overrides={"data.root": "x", "prompt.vocabulary": "cars"})
    assert prompt_in(by_name, None).item == "car"


@pytest.mark.parametrize("dataset", DATASETS)
def test_without_the_key_every_run_asks_as_before(dataset: str, folder: Path) -> None:
    config = resolve(dataset, overrides={"data.root": None if dataset == "demo" else "x", "mllm.path": str(folder)})
    assert run_prompt(config) == load_prompt(dataset, "structured", folder)
    assert prompt_in(config, None) == load_prompt(dataset, "structured", None)


def test_an_mllm_with_its_own_prompt_cannot_be_asked_another(folder: Path) -> None:
    config = resolve("demo", overrides={"prompt.vocabulary": "birds", "mllm.path": str(folder)})
    with pytest.raises(ValueError, match=r"prompt\.vocabulary: birds cannot be asked.*carries its own prompt"):
        run_prompt(config)


def test_other_words_under_the_same_name_are_another_configuration(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.yaml")
    overrides = {"data.root": "x", "prompt.vocabulary": str(path)}
    first = resolve("cub", overrides=overrides)
    assert from_yaml(to_yaml(first), "config.yaml") == first
    written(path, role="potter")
    second = resolve("cub", overrides=overrides)
    assert first.prompt.vocabulary_digest != second.prompt.vocabulary_digest
    assert config_hash(first) != config_hash(second)
    with pytest.raises(ValueError, match="has changed since this run was configured"):
        prompt_in(first, None)
    with pytest.raises(ConfigError, match=r"prompt\.vocabulary_digest: 0123456789ab is not that of"):
        resolve("cub", overrides={**overrides, "prompt.vocabulary_digest": "0123456789ab"})


def test_the_same_words_elsewhere_are_the_same_configuration(tmp_path: Path) -> None:
    paths = [written(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    first, second = (resolve("demo", overrides={"prompt.vocabulary": str(path)}) for path in paths)
    assert config_hash(first) == config_hash(second) != config_hash(resolve("demo"))


def test_a_reduced_vocabulary_keeps_order_and_refuses_to_be_empty() -> None:
    birds, _ = load_vocabulary("birds")
    fewer = birds.without({"bill length", "size"})
    assert tuple(fewer.attributes) == tuple(name for name in GROUPS if name not in ("bill length", "size"))
    with pytest.raises(ValueError, match="none of its attributes would be left"):
        birds.without(set(birds.attributes))


def test_keys_that_came_later_leave_the_hash_of_a_configuration_as_it_was() -> None:
    """Seeds of one row are known by it: results that are stored must stay together with those to come."""
    assert config_hash(resolve("demo")) == "214ed5ad2510cc22"
    assert config_hash(resolve("demo", overrides={"data.crop_area": 0.5})) != "214ed5ad2510cc22"
