"""JPEG files decoded smaller, beside the documented conversion."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.data.pixels.draft import decode_draft
from saga_ray.data.pixels.images import BrokenImageError, decode
from saga_ray.data.shards.prepare import prepare
from tests.data.trees import class_folders, picture


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_files_give_nearly_the_same_pixels_from_fewer(mode: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.jpg"
    smooth(640, 480, mode).save(path, quality=95)
    exact, draft = decode(path, 64).astype(int), decode_draft(path, 64).astype(int)
    assert draft.shape == (64, 64, 3) and np.abs(exact - draft).mean() < 2
    with Image.open(path) as image:
        image.draft(None, (64, 64))
        assert image.size == (160, 120), "a quarter is enough for 64 pixels"


def test_a_file_that_is_not_twice_as_large_and_other_formats_are_decoded_exactly(tmp_path: Path) -> None:
    for name, size in (("a.jpg", (100, 90)), ("b.png", (640, 480))):
        smooth(*size).save(tmp_path / name)
        np.testing.assert_array_equal(decode_draft(tmp_path / name, 64), decode(tmp_path / name, 64))


def test_turned_and_cut_pictures_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    image = smooth(640, 480)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, quality=95, exif=exif)
    for cut in (0, 20):
        assert np.abs(decode(path, 64, cut).astype(int) - decode_draft(path, 64, cut)).mean() < 3


def test_damaged_files_are_refused_as_always(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth(640, 480).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BrokenImageError) as exact:
        decode(path, 64)
    with pytest.raises(BrokenImageError) as draft:
        decode_draft(path, 64)
    assert str(draft.value) == str(exact.value)
    smooth(640, 480).save(path)
    with pytest.raises(BrokenImageError, match="are cut off below"):
        decode_draft(path, 64, cut_bottom=480)


def folder(root: Path, **values: object) -> RunConfig:
    return resolve("folder", overrides={"data.root": str(root), "data.image_size": 16, **values})


def test_a_data_set_in_draft_has_another_fingerprint_and_the_same_rows(tmp_path: Path) -> None:
    class_folders(tmp_path, {name: 3 for name in "abcdefgh"})
    exact, draft = load_dataset(folder(tmp_path)), load_dataset(folder(tmp_path, **{"data.decode": "draft"}))
    assert exact.fingerprint != draft.fingerprint and len(draft.fingerprint) == 16
    for split in ("train", "validation", "test"):
        one, other = exact.split(split), draft.split(split)
        assert one.image_ids == other.image_ids and one.source.paths == other.source.paths
        for row in range(len(one)):
            expected = decode_draft(one.source.path(row), 16)
            np.testing.assert_array_equal(other.source.load([row], 16)[0], expected)


def test_shards_and_parquet_files_are_decoded_in_draft_as_files_are(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", {name: 3 for name in "abcdefgh"})
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        picture(path, number, (120, 90))
    exact = load_dataset(folder(root))
    prepare(exact, str(tmp_path / "shards"), folder(root).data, 2, lambda done, total: None)
    files = load_dataset(folder(root, **{"data.decode": "draft"}))
    shards = load_dataset(folder(tmp_path / "shards", **{"data.decode": "draft"}))
    # The same files as Parquet of another kind: the shards without what makes them shards.
    (tmp_path / "parquet").mkdir()
    for shard in (tmp_path / "shards").glob("images-*.parquet"):
        shutil.copy(shard, tmp_path / "parquet")
    parquet = load_dataset(folder(tmp_path / "parquet", **{"data.decode": "draft"}))
    assert shards.fingerprint == files.fingerprint != exact.fingerprint
    rows = range(len(files.test))
    expected = files.test.source.load(rows, 16)
    np.testing.assert_array_equal(shards.test.source.load(rows, 16), expected)
    np.testing.assert_array_equal(parquet.test.source.load(rows, 16), expected)
    assert np.abs(exact.test.source.load(rows, 16).astype(int) - expected).max() > 0, "the case must not be empty"


def test_a_drawn_world_has_no_draft() -> None:
    with pytest.raises(ValueError, match=r"data\.decode: draft reads image files.*DemoSource; set data\.decode=exact"):
        load_dataset(resolve("demo", overrides={"data.decode": "draft"}))


def test_a_bomb_is_a_broken_image_in_draft_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth(640, 480).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = (60000).to_bytes(2, "big") * 2
    path.write_bytes(content)
    for read in (decode, decode_draft):
        with pytest.raises(BrokenImageError):
            read(path, 64)
