"""The smaller verbs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_ray.config import DATASETS
from saga_ray.config.keys import model_keys
from tests.cli.conftest import SMALL, Outcome
from tests.helpers.small_families import small_family_folder

Type = Callable[..., Outcome]


def test_an_empty_board_is_an_empty_list(type_: Type) -> None:
    said = type_("leaderboard", "demo", "--format", "json")
    assert (said.code, json.loads(said.out)) == (0, [])
    assert "saga-ray train demo" in said.err
    assert not Path("runs").exists()


def test_every_format_of_the_board_shows_the_row(type_: Type) -> None:
    assert type_("train", "demo", "--local", "--method", "pretrained", *SMALL).code == 0
    [row] = json.loads(type_("leaderboard", "demo", "--format", "json").out)
    assert 0 <= row["recall@1"] <= row["recall@8"] <= 1
    wanted = {"method", "label", "recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi", "seeds", "split"}
    assert {*wanted, "fingerprint", "partial"} <= row.keys()
    for form in ("table", "md", "html"):
        said = type_("leaderboard", "demo", "--format", form)
        assert said.code == 0
        assert "pretrained" in said.out and f"{100 * row['recall@1']:.1f}" in said.out
    [line] = csv.DictReader(io.StringIO(type_("leaderboard", "demo", "--format", "csv").out))
    assert float(line["recall@1"]) == row["recall@1"]
    assert json.loads(type_("leaderboard", "demo", "--format", "json", "--split", "validation").out) == []


def test_a_study_writes_a_page_with_board_curves_gallery_and_answers(type_: Type) -> None:
    said = type_("study", "demo", "--local", "--steps", "1", "--runs", "out", *SMALL)
    assert said.code == 0, said.err
    page = Path("out/index.html").read_text()
    for word in ("pretrained", "potential-field", "saga", "gallery-saga/index.html", "curves.svg", "pairs/01-1.png"):
        assert word in page
    assert Path("out/gallery-saga/index.html").is_file()
    assert len(json.loads(type_("leaderboard", "demo", "--runs", "out", "--format", "json").out)) == 4
    for word in ("out/index.html", "saga-ray leaderboard demo --runs out"):
        assert word in said.err


def test_data_sets_are_listed(type_: Type) -> None:
    said = type_("data", "list")
    assert [line.split()[0] for line in said.out.splitlines()] == list(DATASETS)


def test_a_data_set_is_counted_and_pictured(type_: Type) -> None:
    said = type_("data", "show", "demo", "--picture", "birds.png", *SMALL[:3])
    assert said.code == 0, said.err
    counts = {line.split()[0]: line.split()[1:] for line in said.out.splitlines()}
    assert counts["train"] == ["8", "classes", "32", "images"]
    assert counts["test"] == ["4", "classes", "16", "images"]
    pixels_HWC = np.asarray(Image.open("birds.png"))
    assert pixels_HWC.shape[2] == 3 and len(np.unique(pixels_HWC)) > 50


def test_the_prompt_is_shown_word_by_word(type_: Type) -> None:
    said = type_("prompt", "show", "demo")
    assert said.code == 0, said.err
    assert said.out.count("<image 1>") == said.out.count("<image 2>") == 1
    assert said.out.index("<image 1>") < said.out.index("<image 2>")
    other = type_("prompt", "show", "demo", "--set", "prompt.variant=generic")
    assert other.out != said.out


@pytest.mark.parametrize(
    ("family", "more", "images"),
    [
        ("gemma3", (), "8 of the images, 4 each at 32"),
        ("llava_onevision", (), "10 of the images, 5 each at 32"),  # a newline behind each
        ("qwen2_5_vl", ("data.image_size=64",), "32 of the images, 16 each at 64"),
        ("gemma3", ("encoder.tower=timm:test_vit", "data.image_size=64"), "32 of the images, 16 each at 64"),
    ],
)
def test_the_tokens_of_a_prompts_images_are_those_that_the_encoder_gives(
    type_: Type, tmp_path: Path, family: str, more: tuple[str, ...], images: str
) -> None:
    folder = small_family_folder(tmp_path / family, family)
    said = type_("prompt", "show", "cub", "--set", f"mllm.path={folder}", "data.image_size=32", *more)
    assert said.code == 0, said.err
    assert images in said.err
    parts = ("tokens in all", "before image 1", "between the", "after image 2", "of the images")
    whole, *numbers = (
        int(line.split()[0]) for part in parts for line in said.err.splitlines() if f" {part}" in line[6:]
    )
    assert whole == sum(numbers)


def test_a_prompt_whose_model_is_not_here_is_shown_without_its_template(type_: Type) -> None:
    said = type_("prompt", "show", "cub")
    assert said.code == 0
    assert "without the model's chat template" in said.err and "tokens are not counted" in said.err
    assert "ornithologist" in said.out and '"same_species"' in said.out


def test_the_mllm_answers_about_two_files(type_: Type, pictures: Path) -> None:
    first, second = str(pictures / "class0" / "0.png"), str(pictures / "class1" / "0.png")
    said = type_("mllm", "try", first, second, "--answers", "3")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert len(lines) == 3
    for line in lines:
        verdict, rest = line[:10].strip(), line[10:].split(maxsplit=1)
        assert verdict in ("same", "different", "no verdict")
        assert rest[0] in ("-", "<0.001") or 0.0 < float(rest[0]) <= 1.0
        assert (rest[0] == "-") == (verdict == "no verdict")
    for words, sentence in (
        ((first, "nowhere.png"), "nowhere.png"),
        ((first,), "1 pictures are named; give two"),
    ):
        refused = type_("mllm", "try", *words)
        assert refused.code == 2 and sentence in refused.err
    Path("text.png").write_text("no picture")
    refused = type_("mllm", "try", first, "text.png")
    assert refused.code == 2 and "text.png" in refused.err and "Loading" not in refused.err


def test_without_pictures_the_mllm_reads_two_drawn_birds(type_: Type) -> None:
    said = type_("mllm", "try", "--answers", "2", "--set", "seed=1", "prompt.answers=template")
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines()] == ["different"] * 2
    table = [
        line
        for line in said.err.splitlines()
        if line.startswith(("crown", "breast", "belly", "wing", "tail", "bill", "leg"))
    ]
    assert len(table) == 10 and sum(line.endswith("differs") for line in table) == 4


def test_the_attention_over_two_files_is_drawn(type_: Type, pictures: Path, tmp_path: Path) -> None:
    first, second = str(pictures / "class0" / "0.png"), str(pictures / "class1" / "0.png")
    out = tmp_path / "looked.png"
    words = ("mllm", "try", first, second, "--answers", "2", "--set", "prompt.answers=template", "--out")
    said = type_(*words, str(out))
    assert said.code == 0, said.err
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000
    assert all('"same_species"' in line for line in said.out.splitlines())
    refused = type_(*words, "looked.txt")
    assert refused.code == 2 and "--out looked.txt: is no name of a PNG file" in refused.err


def test_keys_are_listed_with_default_and_meaning(type_: Type) -> None:
    lines = type_("config", "keys").out.splitlines()
    named = [line.split(" = ")[0] for line in lines if not line.startswith(" ")]
    assert named == list(model_keys()) and len(lines) > 1.8 * len(named)
    assert type_("config", "keys", "grpo").out.startswith("grpo.reward = ")
    assert "did you mean 'grpo'?" in type_("config", "keys", "grop").err


def test_the_schema_describes_the_keys(type_: Type) -> None:
    schema = json.loads(type_("config", "schema").out)
    assert {key.split(".")[0] for key in model_keys()} == set(schema["properties"])
    assert "baseline" in schema["$defs"]["GRPOConfig"]["properties"]["group_size"]["description"]


def test_the_doctor_finds_a_file_in_the_way_and_a_cluster_that_is_not_there(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    well = type_("doctor")
    assert well.code == 0, well.out
    assert "demo MLLM" in well.out and "PROBLEM" not in well.out
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    ill = type_("doctor", "--runs", "file")
    assert ill.code == 1
    assert ill.out.count("PROBLEM") == 2
    assert "2 problems found." in ill.out


def test_a_template_is_shown_with_its_gaps(type_: Type) -> None:
    said = type_("prompt", "show", "demo", "--set", "prompt.answers=template")
    assert said.code == 0, said.err
    assert '"bill shape":"<bill shape>"' in said.err and '"differences":["..."],"same_species":"<verdict>"}' in said.err
