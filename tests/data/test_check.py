"""The check of a copy: every layout is recognised, every kind of damage found, and the last line says it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from saga_ray.data import load_dataset
from saga_ray.data.benchmarks.layouts import ARCHIVES
from saga_ray.data.inspect.check import ODD_KINDS, Report, check
from saga_ray.data.inspect.detect import detect
from saga_ray.data.inspect.duplicates import perceptual_hash
from saga_ray.data.inspect.scan import examine, scan
from saga_ray.data.inspect.stats import lines, statistics
from tests.data.test_shards import AVES, BIRDS, CARS, OTHERS, config_of, prepared
from tests.data.trees import (
    aircraft_tree,
    cars_tree,
    class_folders,
    cub_tree,
    inat_tree,
    jpeg_with_damaged_exif,
    picture,
    tar,
)


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def checked(root: Path, name: str = "folder", **assignments: object) -> Report:
    return check(name, str(root), silent, assignments=assignments)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of eight classes."""
    return class_folders(tmp_path / "pictures", {f"class {i}": 4 for i in range(8)})


LAYOUTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cub": ("cub", lambda root: cub_tree(root, BIRDS)),
    "cars, one list": ("cars", lambda root: cars_tree(root, "one list", CARS)),
    "cars, devkit": ("cars", lambda root: cars_tree(root, "devkit", CARS)),
    "cars, kaggle": ("cars", lambda root: cars_tree(root, "kaggle", CARS)),
    "aircraft": ("aircraft", lambda root: aircraft_tree(root, ["CRJ-700", "Cessna 172", "F/A-18", "MD-80"])),
    "species": ("inat-aves", lambda root: inat_tree(root, AVES + OTHERS)),
    "coco": ("inat-aves", lambda root: inat_tree(root, AVES + OTHERS, flat=True)),
    "folder": ("folder", lambda root: class_folders(root, {f"c{i}": 2 for i in range(5)})),
    "given splits": ("folder", lambda root: [class_folders(root / s, {f"{s}{i}": 2 for i in range(3)}) for s in ("train", "test")]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_told_partial_or_usable(layout: str, tmp_path: Path) -> None:
    name, make = LAYOUTS[layout]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    found = detect(str(root))
    assert found.dataset == name and not found.missing
    report = checked(root, name)
    if name == "folder":
        assert report.line == "folder: usable"
    else:
        assert report.line.startswith(f"{name}: partial, ") and "but published are" in report.line
    prepared(load_dataset(config_of(name, root)), tmp_path / "out")
    assert detect(str(tmp_path / "out")).dataset == name
    assert checked(tmp_path / "out", name).line.partition(",")[0] == report.line.partition(",")[0]


def test_a_layout_with_a_part_missing_is_named_with_what_is_missing(tmp_path: Path) -> None:
    cub_tree(tmp_path, BIRDS)
    (tmp_path / "CUB_200_2011" / "classes.txt").unlink()
    assert (detect(str(tmp_path)).dataset, detect(str(tmp_path)).missing) == ("cub", ("classes.txt",))
    assert checked(tmp_path, "cub").line.startswith("cub: unusable, ")


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("CUB_200_2011.tgz", "cub"), ("cars_train.tgz", "cars"), ("car_ims.tgz", "cars"), ("fgvc-aircraft-2013b.tar.gz", "aircraft"),
        ("train_mini.tar.gz", "inat-aves"), ("train.tar.gz", "inat-aves"), ("pictures.zip", "folder"),
    ],
)  # fmt: skip
def test_archives_are_known_by_their_names(name: str, dataset: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert detect(str(tmp_path / name)).dataset == dataset
    if dataset != "folder":
        assert detect(str(tmp_path)).dataset == dataset


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("cartoons.zip", "folder"), ("cards.tar", "folder"), ("Stanford_Online_Products.zip", "folder"), ("cubism.zip", "folder"),
        ("stanford-cars.zip", "cars"), ("CARS196.zip", "cars"), ("CUB_200_2011 (1).tgz", "cub"), ("FGVC-Aircraft-2013b.tar", "aircraft"),
    ],
)  # fmt: skip
def test_archives_that_only_begin_alike_are_others(name: str, dataset: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert detect(str(tmp_path / name)).dataset == dataset


def test_folders_that_share_some_marks_with_a_benchmark_are_others(tmp_path: Path) -> None:
    class_folders(tmp_path / "named", {name: 2 for name in "abcd"})
    (tmp_path / "named" / "names.csv").write_text("a\n")
    class_folders(tmp_path / "mine" / "images", {name: 2 for name in "abcd"})
    (tmp_path / "mine" / "classes.txt").write_text("1 a\n")
    class_folders(tmp_path / "both", {"car_ims": 2, "trucks": 2})
    for root in ("named", "mine", "both"):
        found = detect(str(tmp_path / root))
        assert (found.dataset, found.missing) == ("folder", ())
    assert load_dataset(config_of("folder", tmp_path / "named")).test.class_names == ("c", "d")


@pytest.mark.parametrize(("layout", "gone"), [("one list", "cars_annos.mat"), ("kaggle", "names.csv")])
def test_half_a_layout_is_named_where_it_can_be_no_other(layout: str, gone: str, tmp_path: Path) -> None:
    cars_tree(tmp_path, layout, CARS)
    (tmp_path / gone).unlink()
    found = detect(str(tmp_path))
    assert (found.dataset, found.missing) == ("cars", (gone,))


def test_what_is_no_data_set_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("nothing")
    for root, words in (("nowhere", "does not exist"), ("empty", "is empty"), ("notes", "no data set was recognised"), ("notes/a.txt", "is a file")):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            detect(str(tmp_path / root))
        assert words in str(caught.value) and "\n" not in str(caught.value)


def huge_png() -> bytes:
    """A small file that unpacks to 200 million pixels."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(2501 * 10_000))) + part(b"IEND", b"")  # fmt: skip


@pytest.mark.parametrize("damage", ["cut jpeg", "cut png", "empty", "web page", "bomb", "flipped png", "pdf", "exif"])
def test_every_kind_of_damage_is_found(damage: str, tmp_path: Path) -> None:
    jpeg, png = picture(tmp_path / "a.jpg", 1).read_bytes(), picture(tmp_path / "a.png", 1).read_bytes()
    place = png.index(b"IDAT") + 20
    content = {
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "cut png": png[:-10],  # decodes all the same
        "empty": b"",
        "web page": b"<!DOCTYPE html><title>404</title>",
        "bomb": huge_png(),
        "flipped png": png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :],
        "pdf": b"%PDF-1.4 " + jpeg,
        "exif": jpeg_with_damaged_exif(),
    }[damage]
    assert examine(jpeg).broken is None and examine(png).broken is None
    assert examine(content).broken


def test_a_broken_image_of_the_queried_classes_makes_it_unusable(pictures: Path) -> None:
    victim = pictures / "class 7" / "0.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    report = checked(pictures)
    assert (
        report.line
        == "folder: unusable, 1 image of validation and test classes cannot be decoded; replace or remove the files"
    )
    assert [(split, Path(image)) for split, image, _ in report.broken] == [("test", victim)]


def test_broken_training_images_are_allowed_up_to_a_share(pictures: Path) -> None:
    (pictures / "class 0" / "0.jpg").write_bytes(b"")
    assert checked(pictures).line == (
        "folder: unusable, 1 training image cannot be decoded, more than data.max_broken_share=0.001; replace or remove the files, "
        "or raise data.max_broken_share"
    )
    lenient = checked(pictures, **{"data.max_broken_share": 0.1})
    assert (
        lenient.line
        == "folder: partial, 1 training image cannot be decoded and others take their place; replace the files to train on all"
    )


def test_duplicates_are_found_within_and_across_splits(pictures: Path) -> None:
    photograph = Image.fromarray(load_sample_images().images[0])
    photograph.save(pictures / "class 0" / "flower.jpg", quality=95)
    photograph.resize((320, 214)).save(pictures / "class 7" / "flower again.jpg", quality=70)
    photograph.resize((320, 214)).save(pictures / "class 6" / "flower too.jpg", quality=70)  # of the same split
    (pictures / "class 1" / "copy.jpg").write_bytes((pictures / "class 1" / "0.jpg").read_bytes())
    (pictures / "class 5" / "copy.jpg").write_bytes((pictures / "class 1" / "1.jpg").read_bytes())
    report = checked(pictures)
    assert report.verdict == "usable"
    groups = [sorted(group) for group in report.equal]
    assert ["train: class 1/0.jpg (class 1)", "train: class 1/copy.jpg (class 1)"] in groups
    assert ["test: class 5/copy.jpg (class 5)", "train: class 1/1.jpg (class 1)"] in groups
    assert ["test: class 6/flower too.jpg (class 6)", "test: class 7/flower again.jpg (class 7)"] in groups
    assert report.num_equal_across == 2
    told = {frozenset((a, b)) for a, b, _ in report.near}
    assert frozenset(("train: class 0/flower.jpg (class 0)", "test: class 6/flower too.jpg (class 6)")) in told
    assert not any("copy.jpg" in a + b for a, b, _ in report.near), "told as equal files already"


def test_odd_files_are_listed_and_change_nothing(pictures: Path) -> None:
    (pictures / "class 0" / "Thumbs.db").write_bytes(b"x")
    Image.new("RGB", (40, 300)).save(pictures / "class 1" / "long.jpg")
    Image.new("CMYK", (50, 50)).save(pictures / "class 2" / "print.jpg")
    Image.new("RGB", (50, 50)).save(pictures / "class 3" / "wrong.jpg", "PNG")
    frames = [Image.new("RGB", (50, 50), colour) for colour in ("red", "blue")]
    frames[0].save(pictures / "class 4" / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 60)).save(pictures / "class 5" / "turned.jpg", exif=exif)
    report = checked(pictures)
    odd = [(Path(one.image).name, one.what) for one in report.odd]
    for name, word in (
        ("Thumbs.db", "not listed"), ("long.jpg", "squeezed"), ("print.jpg", "CMYK"), ("wrong.jpg", "is PNG under the name of .jpg"),
        ("moving.gif", "2 frames"), ("turned.jpg", "EXIF"), ("0.jpg", "40 x 30 pixels"),
    ):  # fmt: skip
        assert any(file == name and word in what for file, what in odd), (name, odd)
    kinds = [one.kind for one in report.odd]
    assert kinds == sorted(kinds, key=ODD_KINDS.index) and set(kinds) == set(ODD_KINDS)
    assert report.verdict == "usable"


def test_a_damaged_shard_makes_it_unusable(pictures: Path, tmp_path: Path) -> None:
    prepared(load_dataset(config_of("folder", pictures)), tmp_path / "out")
    shard = tmp_path / "out" / "images-00001-of-00003.parquet"
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 50] ^= 1
    shard.write_bytes(content)
    line = checked(tmp_path / "out").line
    assert line.startswith("folder: unusable, ") and shard.name in line and "damaged" in line


def test_processes_see_what_one_process_sees(pictures: Path) -> None:
    (pictures / "class 7" / "0.jpg").write_bytes(b"")
    dataset = load_dataset(config_of("folder", pictures))
    steps: list[tuple[int, int]] = []
    together = list(scan(dataset, lambda done, total: steps.append((done, total)), num_processes=2))
    assert together == list(scan(dataset, silent, num_processes=1))
    assert steps[-1] == (32, 32) and [split for split, _, _ in together] == ["train"] * 12 + ["validation"] * 4 + ["test"] * 16  # fmt: skip


def test_statistics_count_what_is_there(pictures: Path) -> None:
    Image.new("L", (100, 50)).save(pictures / "class 0" / "grey.png")
    (pictures / "class 7" / "0.jpg").write_bytes(b"<html>")
    found = statistics(load_dataset(config_of("folder", pictures)), silent)
    assert found.formats == {"JPEG RGB": 31, "PNG L": 1} and found.num_unreadable == 1
    assert found.counts["train"]["class 0"] == 5 and sum(map(len, found.counts.values())) == 8
    assert sorted(set(zip(found.width_N.tolist(), found.height_N.tolist(), strict=True))) == [(40, 30), (100, 50)]
    assert found.bytes_N.sum() == sum(path.stat().st_size for path in pictures.rglob("*.*"))
    text = "\n".join(lines(found))
    assert "31 images" in text and "2.00" in text and np.isfinite(found.bytes_N).all()


def test_what_to_do_stands_in_the_verdict(tmp_path: Path) -> None:
    cub_tree(tmp_path / "cub", BIRDS)
    assert "; complete the copy, or go on with what is there" in checked(tmp_path / "cub", "cub").line
    lenient = checked(tmp_path / "cub", "cub", **{"data.verify_counts": False})
    assert lenient.line.endswith("; complete the copy, or see its rows marked partial")
    class_folders(tmp_path / "few", {"a": 2, "b": 2})
    assert "; name another folder" in checked(tmp_path / "few").line


def test_a_set_without_validation_classes_is_usable_with_a_warning(tmp_path: Path, pictures: Path) -> None:
    report = checked(class_folders(tmp_path / "four", {f"c{i}": 2 for i in range(4)}))
    assert report.line == "folder: usable" and report.counts["validation"] == (0, 0)
    [warning] = report.warnings
    assert "sweeps and studies" in warning
    assert not checked(pictures).warnings


def test_banners_make_no_pictures_alike() -> None:
    """As FGVC-Aircraft's: a dark line with the photographer's name below every picture."""
    photographs = [Image.fromarray(image).resize((160, 120)) for image in load_sample_images().images]
    hashes: dict[int, list[int]] = {0: [], 20: []}
    for photograph, colour in ((photographs[0], "black"), (photographs[0], "white")):
        framed = Image.new("RGB", (160, 140), colour)
        framed.paste(photograph, (0, 0))
        buffer = io.BytesIO()
        framed.save(buffer, "PNG")
        for cut in hashes:
            hashes[cut].append(examine(buffer.getvalue(), cut).phash)
    assert hashes[20][0] == hashes[20][1] == perceptual_hash(photographs[0])
    assert hashes[0][0] != hashes[0][1]


IN_ONE_ARCHIVE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "CUB_200_2011": ("cub", lambda root: cub_tree(root, BIRDS)),
    "fgvc-aircraft-2013b": ("aircraft", lambda root: aircraft_tree(root, ["CRJ-700", "Cessna 172", "F/A-18", "MD-80"])),
    "stanford_cars": ("cars", lambda root: cars_tree(root / "stanford_cars", "devkit", CARS)),
    **{
        name: ("inat-aves", lambda root, name=name: inat_tree(root, AVES, name=name))
        for name in ("train_mini", "2021_train_mini", "train", "2021_train")
    },
}


@pytest.mark.parametrize("stem", IN_ONE_ARCHIVE)
def test_an_archive_that_is_recognised_in_a_folder_is_one_that_its_reader_opens(stem: str, tmp_path: Path) -> None:
    name, make = IN_ONE_ARCHIVE[stem]
    (tmp_path / "made").mkdir()
    make(tmp_path / "made")
    (tmp_path / "data").mkdir()
    archive = tar(
        tmp_path / "data" / f"{stem}.tar.gz", *(path for path in (tmp_path / "made").iterdir() if path.is_dir())
    )
    assert detect(str(archive)).dataset == detect(str(archive.parent)).dataset == name
    assert load_dataset(config_of(name, archive.parent)).name == name


def test_every_name_of_an_owners_archive_is_recognised_and_others_only_where_they_are_named(tmp_path: Path) -> None:
    for name, groups in ARCHIVES.items():
        for stem in {stem for group in groups for stem in group}:
            (tmp_path / stem).mkdir()
            (tmp_path / stem / f"{stem}.zip").write_bytes(b"")
            assert detect(str(tmp_path / stem)).dataset == detect(str(tmp_path / stem / f"{stem}.zip")).dataset == name
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "cub200.zip").write_bytes(b"")
    assert detect(str(tmp_path / "copy" / "cub200.zip")).dataset == "cub"
    with pytest.raises(ValueError, match="no data set was recognised"):  # its reader would not look for it there
        detect(str(tmp_path / "copy"))
