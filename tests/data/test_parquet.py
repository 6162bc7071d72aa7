"""Any Parquet files: columns found by themselves, names of the hub, splits by class, memory bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saga_ray.data import load_dataset
from saga_ray.data.files.places import absolute
from saga_ray.data.files.row_groups import RowGroups, forget
from saga_ray.data.inspect.detect import detect
from saga_ray.data.pixels.images import BrokenImageError, decode
from saga_ray.types import Dataset
from tests.data.test_shards import SPLITS, config_of, prepared, same_tables
from tests.data.trees import class_folders, picture

NAMES = ["wren", "owl", "robin", "heron"]


def files(root: Path, num_images: int = 16) -> list[bytes]:
    return [picture(root / "files" / f"{i}.png", i).read_bytes() for i in range(num_images)]


def write(path: Path, columns: dict[str, Any], names: list[str] | None = None, group: int = 3) -> None:
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def read(root: Path, **changes: object) -> Dataset:
    return load_dataset(config_of("folder", root, **changes))


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    contents = files(tmp_path)
    structs = [{"bytes": content, "path": "a.png"} for content in contents]  # equal paths are common there
    for part, start in (("train", 0), ("test", 8)):
        labels = [i % 4 for i in range(start, start + 8)]
        write(tmp_path / "hub" / "data" / f"{part}-00000-of-00001.parquet", {"image": structs[start : start + 8], "label": labels}, NAMES)  # fmt: skip
    dataset = read(tmp_path / "hub")
    # Both parts have all classes: they are pooled and split by class, in the order of the numbers.
    assert dataset.train.class_names + dataset.validation.class_names == ("wren", "owl")
    assert dataset.test.class_names == ("robin", "heron") and len(dataset.test) == 8
    for row, image_id in enumerate(dataset.test.image_ids):
        number = contents.index(dataset.test.source.read(row))
        assert number % 4 == 2 + dataset.test.labels_N[row] and image_id.endswith("/a.png")
        pixels = decode(tmp_path / "files" / f"{number}.png", 20)
        assert np.array_equal(dataset.test.source.load([row], 20)[0], pixels)
    assert len(set(dataset.test.image_ids)) == 8


def test_splits_that_share_no_class_are_kept(tmp_path: Path) -> None:
    labels = [NAMES[i % 4] for i in range(16)]
    splits = [{"wren": "test", "owl": "train", "robin": "train", "heron": "test"}[label] for label in labels]
    write(tmp_path / "p" / "all.parquet", {"picture": files(tmp_path), "species": labels, "split": splits})
    dataset = read(tmp_path / "p")
    assert dataset.test.class_names == ("heron", "wren") and dataset.train.class_names == ("owl", "robin")


def write_split(path: Path, words: list[str | None], column: str = "split") -> None:
    """Wren, owl, robin and heron, each with the word for its split."""
    contents = files(path.parent.parent)
    write(path, {"image": contents, "label": NAMES * 4, column: pa.array(words * 4, pa.string())})


@pytest.mark.parametrize("column", ["split", "Split"])
@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "TESTING "), ("train", "test")])
def test_splits_may_be_spelt_otherwise(train: str, test: str, column: str, tmp_path: Path) -> None:
    write_split(tmp_path / "p" / "a.parquet", [test, train, train, test], column)
    dataset = read(tmp_path / "p")
    assert dataset.test.class_names == ("heron", "wren") and dataset.train.class_names == ("owl", "robin")


@pytest.mark.parametrize("words", [["Valid", "val"], ["validation", "Dev"]])
def test_validation_classes_may_be_spelt_otherwise(words: list[str], tmp_path: Path) -> None:
    contents = files(tmp_path, 24)
    labels = ["a", "b", "c", "d", "e", "f"] * 4
    splits = ["train", "train", *words, "test", "test"] * 4
    write(tmp_path / "p" / "a.parquet", {"image": contents, "label": labels, "split": splits})
    assert read(tmp_path / "p").validation.class_names == ("c", "d")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "train", "exam", "exam"], "'exam' in the split column is no split; write train, validation or test"),
        (["train", "train", "test", None], "4 of 16 images have no word in the split column"),
    ],
)
def test_splits_that_are_not_understood_are_refused(words: list[str | None], said: str, tmp_path: Path) -> None:
    write_split(tmp_path / "p" / "a.parquet", words)
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "p")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_split_column_without_any_word_says_nothing(tmp_path: Path) -> None:
    write_split(tmp_path / "p" / "a.parquet", [None] * 4)
    assert read(tmp_path / "p").test.class_names == ("robin", "wren")


def test_splits_that_cannot_be_kept_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_split(tmp_path / "p" / "a.parquet", ["train", "train", "train", "test"])
    read(tmp_path / "p")
    assert "its splits are not kept: train and test need two classes each" in caplog.text


def test_files_may_be_read_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "p" / "a.parquet", {"image": files(tmp_path), "label": NAMES * 4})
    prepared(read(tmp_path / "p"), tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    roots = ("p", "p/a.parquet", "shards")
    relative = [read(Path(root)) for root in roots]
    whole = [read(tmp_path / root) for root in roots]
    monkeypatch.chdir("/")
    forget()
    for one, other in zip(relative, whole, strict=True):
        assert one.fingerprint == other.fingerprint and one.test.source.root == other.test.source.root
        same_tables(one.test, other.test)


def test_addresses_are_left_as_they_are() -> None:
    assert absolute("s3://bucket/birds") == "s3://bucket/birds"


def test_one_file_is_read_as_a_folder_that_holds_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "p" / "a.parquet", {"image": files(tmp_path), "label": [i % 4 for i in range(16)]})
    folder = read(tmp_path / "p")
    write(tmp_path / "p" / "b.parquet", {"image": files(tmp_path)[:1], "label": [9]})
    monkeypatch.chdir(tmp_path / "p")
    for root in (tmp_path / "p" / "a.parquet", Path("a.parquet")):
        one = read(root)
        assert one.fingerprint == folder.fingerprint and detect(str(root)).dataset == "folder"
        for split in SPLITS:
            same_tables(folder.split(split), one.split(split))
    with pytest.raises(ValueError, match=r"c\.parquet does not exist"):
        read(tmp_path / "p" / "c.parquet")


def test_shards_of_parquet_files_equal_them(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.parquet", {"image": files(tmp_path), "label": [i % 4 for i in range(16)]})
    dataset = read(tmp_path / "p")
    assert dataset.test.class_names == ("2", "3")
    prepared(dataset, tmp_path / "out")
    shards = read(tmp_path / "out")
    assert shards.fingerprint == dataset.fingerprint
    for split in SPLITS:
        same_tables(dataset.split(split), shards.split(split))


def test_images_without_a_class_are_left_out_and_broken_ones_named(tmp_path: Path) -> None:
    contents = files(tmp_path)
    contents[3] = b"<html>"
    write(tmp_path / "p" / "a.parquet", {"image": contents, "label": [*(i % 4 for i in range(12)), -1, -1, None, None]})
    dataset = read(tmp_path / "p")
    assert sum(len(dataset.split(split)) for split in SPLITS) == 12
    with pytest.raises(BrokenImageError, match=r"a\.parquet: image a\.parquet/1/0: "):
        dataset.test.source.load(range(len(dataset.test)), 16)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [b"1"] * 16, "y": [b"2"] * 16, "label": [1] * 16}, "several columns (x, y) of image bytes"),
        ({"image": [b"1"] * 16}, "no column of words or numbers"),
        ({"text": ["a"] * 16, "label": [1] * 16}, "no column of image bytes"),
        ({"image": [{"bytes": None, "path": "a"}] * 16, "label": [0, 1, 2, 3] * 4}, "only paths"),
        ({"image": [b"1"] * 16, "label": [-1] * 16}, "no image with a class"),
        ({"image": [b"1"] * 16, "label": [1] * 16}, "at least 4 are needed"),
        ({"image": [b"1"] * 5, "label": [0, 1, 2, 3, 3]}, "single image"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    if columns.get("image", [None])[0] == {"bytes": None, "path": "a"}:
        columns["image"] = pa.array(columns["image"], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    write(tmp_path / "p" / "a.parquet", columns)
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "p")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none_or_of_another_kind_are_named(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.parquet", {"image": files(tmp_path), "label": [i % 4 for i in range(16)]})
    write(tmp_path / "p" / "b.parquet", {"image": files(tmp_path)})
    with pytest.raises(ValueError, match=r"b\.parquet: has no column 'label'"):
        read(tmp_path / "p")
    write(tmp_path / "p" / "b.parquet", {"image": files(tmp_path), "label": NAMES * 4})
    with pytest.raises(
        ValueError, match=r"b\.parquet: column 'label' holds words, but that of a\.parquet numbers; keep"
    ):
        read(tmp_path / "p")
    (tmp_path / "p" / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as Parquet"):
        read(tmp_path / "p")


def test_large_row_groups_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "p" / "a.parquet", {"image": files(tmp_path), "label": [i % 4 for i in range(16)]})
    read(tmp_path / "p")
    assert "data prepare" not in caplog.text
    monkeypatch.setattr("saga_ray.data.files.parquet.LARGE_GROUP_BYTES", 100)
    read(tmp_path / "p")
    assert "data prepare" in caplog.text


def test_row_groups_that_are_kept_are_bounded(tmp_path: Path) -> None:
    contents = [bytes([i]) * 100 for i in range(30)]
    write(tmp_path / "a.parquet", {"image": contents}, group=5)
    cache = RowGroups(max_bytes=1_100)
    for _ in range(2):
        for group in (0, 3, 5, 0, 1):
            assert cache.images(str(tmp_path), "a.parquet", group, "image") == contents[5 * group : 5 * group + 5]
            assert cache.num_bytes <= 1_100
    tiny = RowGroups(max_bytes=1)
    assert tiny.images(str(tmp_path), "a.parquet", 2, "image") == contents[10:15] and tiny.num_bytes == 500


def test_a_stray_parquet_file_is_not_the_data_set(tmp_path: Path) -> None:
    class_folders(tmp_path, {"crow": 2, "owl": 2, "robin": 2, "wren": 2})
    before = read(tmp_path)
    write(tmp_path / "features.parquet", {"x": [1.0, 2.0]})
    after = read(tmp_path)
    assert after.fingerprint == before.fingerprint
    same_tables(after.train, before.train)
