"""`saga-ray vocab`: shown, checked, scored and measured, with the bundled MLLM on drawn birds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from saga_ray.mllm.vocabulary import load_vocabulary
from tests.cli.conftest import Outcome
from tests.helpers.small_mllm import small_mllm_folder

Type = Callable[..., Outcome]
CLEAN = ("--set", "data.shift=0", "data.num_classes=[8,24,4]", "data.num_images=[4,4,4]", "data.tied=0")
"""A small world that looks as the bundled MLLM knows it."""


def test_a_shipped_vocabulary_is_shown_with_its_values(type_: Type) -> None:
    said = type_("vocab", "show", "cars")
    assert said.code == 0, said.err
    assert "17 attributes of a car" in said.out and "sedan, coupe" in said.out
    assert "--mllm DIR" in said.last_line, "the bundled MLLM has no words for cars"
    of_data_set = type_("vocab", "show", "inat-aves")
    assert of_data_set.out == type_("vocab", "show", "birds").out


def test_the_demos_words_are_shown_with_their_tokens(type_: Type) -> None:
    said = type_("vocab", "show", "demo")
    assert said.code == 0, said.err
    assert "10 attributes" in said.out and "forked, fan, pointed, square" in said.out
    assert "A description costs 20 tokens, an answer with two of them 43" in said.out


def test_tokens_are_counted_with_the_tokenizer_that_is_named(type_: Type, tmp_path: Path) -> None:
    folder = small_mllm_folder(tmp_path / "mllm")
    said = type_("vocab", "show", "birds", "--mllm", str(folder))
    assert said.code == 0, said.err
    assert "A description costs" in said.out and str(folder) in said.out
    refused = type_("vocab", "show", "birds", "--mllm", "nowhere")
    assert refused.code == 2 and "nowhere" in refused.last_line


@pytest.mark.parametrize("name", ["birds", "cars", "aircraft", "generic", "demo", "cub"])
def test_what_is_shipped_is_valid(type_: Type, name: str) -> None:
    said = type_("vocab", "check", name)
    assert said.code == 0
    assert said.out.splitlines()[-1].startswith(f"{name}: valid, ")


def test_the_last_line_says_that_a_file_is_not_valid(type_: Type) -> None:
    Path("mine.yaml").write_text(
        "{role: critic, item: vase, verdict_key: v, attributes: {glaze: [matt, matt], foot: []}}"
    )
    said = type_("vocab", "check", "mine.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.last_line == "mine.yaml: not valid, 2 mistakes"
    assert "mine.yaml: attributes.glaze: value 'matt' stands twice; keep one" in said.err
    Path("mine.yaml").write_text(
        "{role: critic, item: vase, verdict_key: v, attributes: {glaze: [matt, gloss], foot: null}}"
    )
    assert type_("vocab", "check", "mine.yaml").out == "mine.yaml: valid, 2 attributes with 2 values\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["show", "brds"], ["'brds' is neither", "did you mean 'birds'?"]),
        (["check", "none.yaml"], ["none.yaml: not valid, 1 mistake"]),
        (["score", "dmo"], ["data set 'dmo'", "did you mean 'demo'?"]),
        (["score", "mine.yaml"], ["mine.yaml", "--dataset NAME"]),
        (["score", "mine.yaml", "--dataset", "demo"], ["prompt.vocabulary", "mine.yaml", "carries its own prompt"]),
        (["score"], ["Expected one data set or vocabulary file"]),
        (["score", "demo", "--dataset", "cub"], ["Expected one data set", "--dataset cub"]),
        (["score", "cub"], ["data.root", "--data-root DIR"]),
        (["score", "demo", "--pairs", "3"], ["--pairs", "3"]),
        (["score", "demo", "--plot", "no/where.png"], ["--plot no/where.png", "folder that exists"]),
        (["score", "demo", "--run", "runs/none"], ["runs/none", "not the folder of a finished run"]),
        (["truth", "runs/none"], ["runs/none", "not the folder of a finished run"]),
        (["truth", "runs/none", "--plot", "no/where.png"], ["--plot no/where.png"]),
    ],
)
def test_a_mistake_is_one_sentence(type_: Type, words: list[str], parts: list[str]) -> None:
    Path("mine.yaml").write_text("{role: critic, item: vase, verdict_key: v, attributes: {glaze: [matt, gloss]}}")
    said = type_("vocab", *words)
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err
    for part in parts:
        assert part in said.last_line


def test_on_clean_birds_every_attribute_decides(type_: Type) -> None:
    """Neighbours differ in four of ten attributes and the MLLM reads them almost without error: each tells about 0.2 bits."""
    said = type_("vocab", "score", "demo", "--pairs", "80", "--answers", "1", "--json", "--plot", "bits.png", *CLEAN)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert {each["finding"] for each in found["attributes"]} == {"decides"} and found["dropped"] == []
    for each in found["attributes"]:
        assert 0.03 < each["bits"] < 0.5 and each["answered"] == 1.0 and each["tokens"] == pytest.approx(4, abs=0.1)
        assert each["differs_same"] < 0.1 < each["differs_different"]
    assert found["tokens_without"] == found["tokens"] and found["told"] > 0.95
    assert (found["dataset"], found["split"], found["run"]) == ("demo", "validation", None)
    assert Image.open("bits.png").size[0] > 500


def test_the_table_says_what_could_be_dropped_and_a_file_holds_the_rest(type_: Type) -> None:
    world = ("--set", "data.shift=0.45", *CLEAN[2:])
    said = type_(
        "vocab",
        "score",
        "demo",
        "--pairs",
        "60",
        "--answers",
        "1",
        "--least-bits",
        "0.1",
        "--write",
        "less.yaml",
        *world,
    )
    lines = said.out.splitlines()
    assert said.code == 0, said.err
    assert len([line for line in lines if line.split("|")[0].strip() in load_vocabulary("birds")[0].attributes]) >= 8
    assert "60 pairs, 1 answers each" in said.out and "its initial encoder" in said.out
    fewer, _ = load_vocabulary("less.yaml")
    assert 0 < len(fewer.attributes) < 10
    dropped = next(line for line in lines if line.startswith("Without "))
    assert all(name not in dropped.split(" an answer costs")[0] for name in fewer.attributes)
    assert type_("vocab", "check", "less.yaml").code == 0


def test_truth_before_and_after_training_as_table_and_picture(type_: Type) -> None:
    world = CLEAN[1:]
    few = ("data.classes_per_batch=8", "data.images_per_class=2", "data.pairs_per_batch=4")
    train = ("--method", "potential-field", "--steps", "2", "--name", "short")
    assert type_("train", "demo", "--local", *train, "--set", *world, *few, "optim.lr_tower=0.03").code == 0
    said = type_("vocab", "truth", "runs/short", "--pairs", "20", "--answers", "1")
    assert said.code == 0, said.err
    rows = [line.split("|") for line in said.out.splitlines() if line.count("|") == 5][1:]
    assert [row[0].strip() for row in rows][:2] == ["all", "crown color"] and len(rows) == 11
    before, after = float(rows[0][1]), float(rows[0][2])
    assert before > 95 and after < before, "clean pictures are read well; so large a rate spoils that"
    assert float(rows[0][3]) == pytest.approx(after - before, abs=0.11)
    assert Image.open("runs/short/truth.png").size[0] > 500
    assert "Wrote runs/short/truth.png" in said.err
    found = json.loads(
        type_("vocab", "truth", "runs/short", "--pairs", "20", "--answers", "1", "--json", "--plot", "t.png").out
    )
    assert 100 * found["attributes"][0]["before"] == pytest.approx(before, abs=0.06) and Path("t.png").is_file()
    scored = type_("vocab", "score", "--run", "runs/short", "--pairs", "20", "--answers", "1")
    assert scored.code == 0 and "the encoder of runs/short" in scored.out
    other = type_("vocab", "score", "cub", "--run", "runs/short")
    assert other.code == 2 and "its own data set (demo)" in other.last_line and "leave out cub" in other.last_line
