"""`saga-ray data`: every verb of it, from a tree on disk to numbers that are equal from shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_ray.config import DATASETS
from tests.cli.conftest import Outcome
from tests.data.test_shards import BIRDS
from tests.data.trees import cub_tree

Type = Callable[..., Outcome]


def test_check_names_the_data_set_and_ends_with_the_verdict(type_: Type, pictures: Path) -> None:
    said = type_("data", "check", str(pictures), "--json", "report.json")
    assert (said.code, said.out.splitlines()[-1]) == (0, "folder: usable")
    assert "looks like folder" in said.err and "decoding every image" in said.err
    assert json.loads(Path("report.json").read_text())["verdict"] == "usable"
    cub_tree(Path("birds"), BIRDS)
    for told in ((), ("--set", "data.verify_counts=false")):
        said = type_("data", "check", "birds", *told)
        assert said.code == 0 and said.out.splitlines()[-1].startswith("cub: partial, ")
    said = type_("data", "check", "birds")
    assert said.code == 0 and said.out.splitlines()[-1].startswith("cub: partial, ")
    victim = next(Path("birds").rglob("*.jpg"))
    for path in victim.parent.iterdir():
        path.write_bytes(b"<html>")
    said = type_("data", "check", "birds", "--dataset", "cub")
    assert said.code == 2 and said.out.splitlines()[-1].startswith("cub: unusable, ")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["check", "nowhere"], ["nowhere", "does not exist"]),
        (["check", ""], ["ROOT", "is empty"]),
        (["check", "empty", "--dataset", "demo"], ["demo", "lies in no folder"]),
        (["prepare", "empty", "--dataset", "demo", "--out", "x"], ["demo", "lies in no folder"]),
        (["stats", "demo"], ["demo", "lies in no folder"]),
        (["check", "empty"], ["empty", "is empty"]),
        (["check", "memory://nothing-here"], ["memory://nothing-here", "neither prepared shards nor Parquet"]),
        (["check", "what://bucket"], ["what://bucket", "cannot be opened"]),
        (["check", "pictures", "--dataset", "cb"], ["data set 'cb'", "did you mean 'cub'?"]),
        (["check", "pictures", "--set", "data.shard=1"], ["data.shard", "did you mean"]),
        (["help", "car"], ["data set 'car'", "did you mean 'cars'?"]),
        (["download", "cars", "--out", "x"], ["cars", "offers no download", "data help cars"]),
        (["download", "demo", "--out", "x"], ["demo", "nothing to download"]),
        (["prepare", "pictures", "--out", "pictures"], ["pictures", "is not empty"]),
        (["prepare", "pictures", "--out", "pictures/class0/0.png"], ["0.png", "is a file"]),
        (["prepare", "pictures"], ["--out"]),
        (["prepare", "pictures", "--out", "new", "--shards", "0"], ["--shards"]),
        (["prepare", "pictures", "--dataset", "cub", "--out", "new"], ["is not CUB-200-2011"]),
        (["show", "nowhere"], ["data set 'nowhere'"]),
        (["show", "pictures", "--out", "pictures"], ["--out pictures", "is not empty"]),
        (["show", "pictures", "--picture", "no/such.png"], ["no/such.png", "cannot be written"]),
        (["stats", "pictures", "--picture", "no/such.png"], ["no/such.png", "cannot be written"]),
        (["stats", "nowhere"], ["does not exist"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(type_: Type, pictures: Path, words: list[str], parts: list[str]) -> None:
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    said = type_("data", *words)
    assert said.code == 2 and "Traceback" not in said.err
    for part in parts:
        assert part in said.last_line
    assert sorted(Path().rglob("*")) == before


def test_unfinished_shards_say_how_to_go_on(type_: Type, pictures: Path) -> None:
    assert type_("data", "prepare", str(pictures), "--out", "shards").code == 0
    Path("shards/manifest.json").rename("shards/unfinished.json")
    for verb in ("check", "stats", "show"):
        said = type_("data", verb, "./shards")
        assert said.code == 2 and "not finished" in said.last_line and "data prepare" in said.last_line


def test_the_command_that_follows_has_the_keys_that_made_the_shards(type_: Type, pictures: Path) -> None:
    keys = ("--set", "data.validation_share=0.5", "--set", "grpo.group_size=2")
    said = type_("data", "prepare", str(pictures), "--out", "shards", *keys)
    assert said.code == 0, said.err
    assert (
        said.err.splitlines()[-1]
        == "Train with: saga-ray train folder --data-root shards --set data.validation_share=0.5"
    )
    assert type_("data", "show", "folder", "--data-root", "shards", "--set", "data.validation_share=0.5").code == 0


def test_a_split_without_classes_is_not_drawn(type_: Type, pictures: Path) -> None:
    for name in ("class4", "class5", "class6", "class7"):
        shutil.rmtree(pictures / name)
    said = type_("data", "show", f"./{pictures.name}", "--out", "sheets", "--split", "validation")
    assert said.code == 2 and said.last_line.endswith(
        "--split validation: 'folder' has no classes there to draw; choose one of train, test"
    )
    assert not Path("sheets").exists()


def test_scores_from_shards_are_equal(type_: Type, pictures: Path) -> None:
    said = type_("data", "prepare", str(pictures), "--out", "shards", "--shards", "3")
    assert said.code == 0 and said.out.split()[0] == "folder"
    assert "saga-ray train folder --data-root shards" in said.err
    again = type_("data", "prepare", str(pictures), "--out", "shards")
    assert again.out == said.out and "shards was finished before, in 3 shards." in again.err
    again = type_("data", "prepare", str(pictures), "--out", "shards", "--shards", "5")
    assert "in 3 shards; --shards 5 changes nothing, delete shards to write it anew" in again.err
    assert type_("data", "check", "shards").out.splitlines()[-1] == "folder: usable"
    small = (
        "--set",
        "data.classes_per_batch=2",
        "data.num_shards=1",
        "data.images_per_class=2",
        "data.pairs_per_batch=2",
    )
    rows = []
    for root, runs in ((str(pictures), "a"), ("shards", "b")):
        trained = type_("train", "folder", "--data-root", root, "--local", "--method", "pretrained", "--runs", runs, *small)  # fmt: skip
        assert trained.code == 0, trained.err
        rows += json.loads(type_("leaderboard", "folder", "--runs", runs, "--format", "json").out)
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"] == said.out.split()[1]
    scores = ("recall@1", "recall@2", "map@r", "nmi")
    assert [rows[0][name] for name in scores] == [rows[1][name] for name in scores]


def test_show_draws_every_class_and_hard_pairs(type_: Type, pictures: Path) -> None:
    copy = Image.open(pictures / "class4" / "0.png")
    copy.save(pictures / "class6" / "same.png")
    broken = pictures / "class5" / "0.png"
    broken.write_bytes(b"")
    said = type_("data", "show", f"./{pictures.name}", "--out", "sheets", "--picture", "some.png")
    assert said.code == 0, said.err
    assert "test            4 classes       17 images" in said.out
    names = sorted(path.name for path in Path("sheets").iterdir())
    assert names == ["0001-class4.png", "0002-class5.png", "0003-class6.png", "0004-class7.png", "hard-pairs.png"]
    sheet = np.asarray(Image.open("sheets/hard-pairs.png"))
    # Of six pairs of classes the one that shares a picture stands first, with itself beside itself.
    assert sheet.shape == (6 * 164 + 4, 2 * 164 + 4 + 460, 3)
    assert np.array_equal(sheet[4:164, 4:164], sheet[4:164, 168:328]) and sheet[4:164, 4:164].std() > 0
    red = np.asarray(Image.open("sheets/0002-class5.png"))[10, 10]
    assert red[0] > 2 * red[1]


def test_a_runs_own_encoder_finds_hard_pairs(type_: Type, pictures: Path) -> None:
    from saga_ray.configure import resolve
    from saga_ray.encoder.encoder import build_encoder
    from saga_ray.encoder.export import save_encoder
    from saga_ray.storage import Storage

    config = resolve("folder", recipe="demo", overrides={"data.root": str(pictures)})
    save_encoder(build_encoder(config), Storage.open("run").child("encoder"), config.data.image_size)
    for out, more in (("plain", ()), ("own", ("--encoder", "run"))):
        assert type_("data", "show", f"./{pictures.name}", "--out", out, "--split", "train", *more).code == 0
    assert Path("plain/hard-pairs.png").read_bytes() == Path("own/hard-pairs.png").read_bytes()
    said = type_("data", "show", f"./{pictures.name}", "--out", "none", "--encoder", "nowhere")
    assert said.code == 2 and "holds no trained encoder" in said.last_line
    assert not Path("none").exists()


def test_statistics_are_a_table_and_a_picture(type_: Type, pictures: Path) -> None:
    said = type_("data", "stats", str(pictures), "--picture", "stats.png")
    assert said.code == 0 and "PNG RGB" in said.out and "32 images" in said.out
    assert Image.open("stats.png").size > (500, 300)


def test_a_dead_address_prints_the_steps_by_hand(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_ray.data.benchmarks import origins

    dead = replace(origins.ORIGINS["cub"].files[0], url="http://127.0.0.1:9/CUB_200_2011.tgz")
    monkeypatch.setitem(origins.ORIGINS, "cub", replace(origins.ORIGINS["cub"], files=(dead,)))
    said = type_("data", "download", "cub", "--out", "archives")
    assert said.code == 2 and said.last_line.startswith("http://127.0.0.1:9/CUB_200_2011.tgz: the connection broke")
    assert "97eceeb196236b17998738112f37df78" in said.err and "tar -xzf" in said.err and said.out == ""


def test_help_names_files_checksums_and_steps(type_: Type) -> None:
    for name in DATASETS:
        assert type_("data", "help", name).code == 0
    said = type_("data", "help", "cars")
    for part in ("979,269,282 bytes", "065e5b463ae28d29e77c1b4b166cfe61", "steps:", "other layouts", "names.csv"):
        assert part in said.out


def test_long_lists_are_cut_and_odd_files_stand_by_their_kind(type_: Type, pictures: Path) -> None:
    for number in range(30):
        (pictures / "class0" / f"copy{number}.png").write_bytes((pictures / "class0" / "0.png").read_bytes())
        (pictures / "class1" / f"note{number:02d}.txt").write_text("x")
    Image.new("RGB", (40, 300)).save(pictures / "class2" / "long.png")
    said = type_("data", "check", str(pictures), "--json", "found.json")
    lines = said.out.splitlines()
    assert lines[-1] == "folder: usable" and max(map(len, lines)) < 400
    [group] = [line for line in lines if "= ..." in line]
    assert group.count(" = ") == 4 and "(31 in all; --json FILE has them all)" in group
    titles = [line for line in lines if " odd (" in line]
    assert titles[-2:] == ["1 odd (long):", "30 odd (not listed):"]
    found = json.loads(Path("found.json").read_text())
    assert len(found["equal"][0]) == 31 and sorted({odd[0] for odd in found["odd"]} - {"long", "small"}) == [
        "not listed"
    ]
