"""Archives: unpacked once, whole or not at all, and never anything outside."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from saga_ray.data.benchmarks.aircraft import aircraft_dataset
from saga_ray.data.benchmarks.cars import cars_dataset
from saga_ray.data.benchmarks.cub import cub_dataset
from saga_ray.data.benchmarks.inat import inat_dataset
from saga_ray.data.files import archives
from saga_ray.data.files.archives import MARKER, unpacked
from saga_ray.data.files.folder import folder_dataset
from saga_ray.data.inspect.detect import detect
from tests.data.trees import (
    AIRCRAFT,
    AVES,
    BIRDS,
    CARS,
    aircraft_tree,
    cars_tree,
    class_folders,
    cub_tree,
    inat_tree,
    partial,
    tar,
)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar file of crafted members."""
    with tarfile.open(path, "w:gz") as out:
        for info, content in members:
            out.addfile(info, io.BytesIO(content))
    return path


def member(name: str, content: bytes = b"x", **values: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in values.items():
        setattr(info, key, value)
    return info, content


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refusal(folder: Path, archive: Path) -> str:
    """The sentence; nothing may have been written beside the archive, nor above."""
    before = everything_in(folder.parent)
    with pytest.raises(ValueError) as caught:
        unpacked([archive])
    sentence = str(caught.value)
    assert sentence.startswith(f"data.root: {archive}") and "\n" not in sentence and "\0" not in sentence
    left = everything_in(folder.parent) - before
    assert all(Path(name).name.endswith(".lock") for name in left), left
    return sentence


# The owners' archives


def test_each_owners_archives_give_the_same_data_as_the_unpacked_tree(tmp_path):
    cub_tree(tmp_path / "cub", BIRDS)
    tar(tmp_path / "cub" / "CUB_200_2011.tgz", tmp_path / "cub" / "attributes.txt", tmp_path / "cub" / "CUB_200_2011")
    aircraft_tree(tmp_path / "aircraft", AIRCRAFT)
    tar(tmp_path / "aircraft" / "fgvc-aircraft-2013b.tar.gz", tmp_path / "aircraft" / "fgvc-aircraft-2013b")
    cars_tree(tmp_path / "cars", "devkit", CARS)
    for archive, folder in (("car_devkit", "devkit"), ("cars_train",) * 2, ("cars_test",) * 2):
        tar(tmp_path / "cars" / f"{archive}.tgz", tmp_path / "cars" / folder)
    cars_tree(tmp_path / "one", "one list", CARS)
    tar(tmp_path / "one" / "car_ims.tgz", tmp_path / "one" / "car_ims")
    inat_tree(tmp_path / "inat", AVES)
    tar(tmp_path / "inat" / "train_mini.tar.gz", tmp_path / "inat" / "train_mini")
    tar(tmp_path / "inat" / "train_mini.json.tar.gz", tmp_path / "inat" / "train_mini.json")
    keep = (".tgz", ".tar.gz", ".mat")
    readers = [("cub", cub_dataset), ("aircraft", aircraft_dataset), ("cars", cars_dataset), ("one", cars_dataset)]
    for name, reader in [*readers, ("inat", inat_dataset)]:
        folder = tmp_path / name
        expected = reader(partial(folder))
        for path in list(folder.iterdir()):  # leave what a download would leave
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.endswith(keep):
                path.unlink()
        found = reader(partial(folder))
        assert found.fingerprint == expected.fingerprint, name
        assert found.attribute_names == expected.attribute_names
        assert found.test.source.load([0], 8).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("ending", [".tgz", ".tar", ".tar.xz", ".zip"])
def test_one_archive_may_be_named_itself(tmp_path, ending):
    cub_tree(tmp_path, BIRDS)
    expected = cub_dataset(partial(tmp_path))
    archive = tmp_path / "download" / f"CUB_200_2011{ending}"
    archive.parent.mkdir()
    if ending == ".zip":
        shutil.make_archive(str(archive)[:-4], "zip", tmp_path, "CUB_200_2011")
    else:
        tar(archive, tmp_path / "CUB_200_2011", mode={".tgz": "w:gz", ".tar": "w", ".tar.xz": "w:xz"}[ending])
    assert cub_dataset(partial(archive)).fingerprint == expected.fingerprint
    assert (archive.parent / "CUB_200_2011.unpacked" / "CUB_200_2011" / "images.txt").is_file()


def test_a_folder_of_classes_may_be_an_archive(tmp_path):
    class_folders(tmp_path / "pictures", {name: 2 for name in "abcdef"})
    expected = folder_dataset(partial(tmp_path / "pictures"))
    tar(tmp_path / "pictures.tar.gz", tmp_path / "pictures")
    assert folder_dataset(partial(tmp_path / "pictures.tar.gz")).fingerprint == expected.fingerprint


@pytest.mark.parametrize("inner", ["pictures", ""])
def test_a_zip_made_on_macos_is_read_without_its_additions(tmp_path, inner):
    pictures = class_folders(tmp_path / "pictures", {name: 2 for name in "abcdef"})
    expected = folder_dataset(partial(pictures))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as out:
        for path in pictures.rglob("*.jpg"):
            name = Path(inner, path.relative_to(pictures))
            out.write(path, str(name))
            out.writestr(str(Path("__MACOSX", name.parent, f"._{name.name}")), b"\0\5\x16\7")
        out.writestr(".DS_Store", b"\0")
    assert folder_dataset(partial(tmp_path / "z.zip")).fingerprint == expected.fingerprint
    tree = tmp_path / "z.unpacked"
    assert (tree / "__MACOSX").is_dir() and detect(str(tree)).dataset == "folder"
    assert folder_dataset(partial(tree)).fingerprint == expected.fingerprint


def test_other_archives_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "holiday.zip").write_bytes(b"not even a zip")
    with pytest.raises(ValueError, match="is not CUB-200-2011"):
        cub_dataset(partial(tmp_path))
    assert everything_in(tmp_path) == {"holiday.zip"}


# Once, and whole


def test_an_archive_is_unpacked_once_and_again_when_it_changed(tmp_path, caplog):
    archive = tar_of(tmp_path / "a.tgz", member("x/1.txt", b"one"))
    folder = unpacked([archive])
    assert (folder / "x" / "1.txt").read_bytes() == b"one" and (folder / MARKER).is_file()
    caplog.clear()
    assert unpacked([archive]) == folder and "Unpacking" not in caplog.text
    tar_of(archive, member("x/2.txt", b"two"))
    os.utime(archive, ns=(1, 1))
    assert unpacked([archive]) == folder and everything_in(folder) == {MARKER, "x", "x/2.txt"}
    assert everything_in(tmp_path) == {
        ".a.unpacked.lock",
        "a.tgz",
        "a.unpacked",
        *(f"a.unpacked/{name}" for name in (MARKER, "x", "x/2.txt")),
    }


def test_what_a_killed_process_left_is_never_read_and_is_cleared_away(tmp_path):
    archive = tar_of(tmp_path / "a.tgz", member("1.txt"), member("2.txt"))
    half = tmp_path / ".a.unpacked.unpacking-abc"
    half.mkdir()
    (half / "1.txt").write_text("half")
    folder = unpacked([archive])
    assert everything_in(folder) == {MARKER, "1.txt", "2.txt"} and not half.exists()


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tgz", member("1.txt"), member("2.txt"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives.shutil, "copyfileobj", stop)
    with pytest.raises(KeyboardInterrupt):
        unpacked([archive])
    assert everything_in(tmp_path) == {"a.tgz", ".a.unpacked.lock"}


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    archive = tar_of(tmp_path / "a.tgz", member("1.txt"))
    (tmp_path / "a.unpacked").mkdir()
    (tmp_path / "a.unpacked" / "thesis.txt").write_text("mine")
    assert "was not made by saga-ray" in refusal(tmp_path, archive)


def test_processes_that_come_at_once_wait_for_one(tmp_path, caplog):
    archive = tar_of(tmp_path / "a.tgz", *(member(f"{i}.txt") for i in range(200)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(unpacked([archive]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "a.unpacked"] * 4 and caplog.text.count("Unpacking") == 1


def test_where_the_folder_cannot_be_written_the_cache_is_used(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tgz", member("1.txt"))
    monkeypatch.setattr(archives.os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = unpacked([archive])
    assert folder.parent == tmp_path / "cache" / "saga-ray" and (folder / "1.txt").is_file()
    assert unpacked([archive]) == folder


def test_a_tree_beside_the_archive_is_used_where_its_folder_can_no_longer_be_written(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tgz", member("1.txt"))
    beside = unpacked([archive])
    monkeypatch.setattr(archives.os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert unpacked([archive]) == beside and not (tmp_path / "cache").exists()
    os.utime(archive, ns=(1, 1))  # another archive than the one that was unpacked
    assert unpacked([archive]) != beside


# What is refused


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "a/..", "C:/evil.txt", "a\\..\\evil"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_are_refused(tmp_path, name, kind):
    folder = tmp_path / "inner"
    folder.mkdir()
    if kind == "tar":
        archive = tar_of(folder / "a.tgz", member("good.txt"), member(name))
    else:
        archive = folder / "a.zip"
        with zipfile.ZipFile(archive, "w") as out:
            out.writestr("good.txt", "x")
            out.writestr(name, "x")
    assert "leads out of it" in refusal(folder, archive)


KINDS = {
    "symlink": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "good.txt"},
    "character device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "block device": {"type": tarfile.BLKTYPE},
    "pipe": {"type": tarfile.FIFOTYPE},
}


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(tmp_path, kind):
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = tar_of(folder / "a.tgz", member("good.txt"), member("bad", b"", **KINDS[kind]))
    assert "member 'bad' is neither a file nor a folder" in refusal(folder, archive)


def test_a_link_inside_a_zip_is_refused(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as out:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    assert "neither a file nor a folder" in refusal(folder, folder / "a.zip")


def test_a_link_followed_by_a_file_behind_it_writes_nothing_outside(tmp_path):
    # The way of CVE-2025-4517: first a link, then a member that goes through it.
    folder = tmp_path / "inner"
    folder.mkdir()
    link = member("out", b"", type=tarfile.SYMTYPE, linkname="..")
    assert "member 'out'" in refusal(folder, tar_of(folder / "a.tgz", link, member("out/evil.txt")))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_bomb_is_refused_before_it_is_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "SPARE_BYTES", 2**16)
    folder = tmp_path / "inner"
    folder.mkdir()
    content = bytes(2**20)
    if kind == "tar":
        archive = tar_of(folder / "a.tgz", member("zeros", content))
    else:
        archive = folder / "a.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("zeros", content)
    assert archive.stat().st_size < 5_000
    assert "unpack to more than an archive of its size holds" in refusal(folder, archive)


def test_a_member_that_claims_terabytes_is_refused(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    info = tarfile.TarInfo("huge")
    info.size = 2**42
    (folder / "a.tar").write_bytes(info.tobuf() + bytes(4096))
    assert "unpack to more than" in refusal(folder, folder / "a.tar")


def test_millions_of_empty_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = tar_of(folder / "a.tgz", *(member(f"{i}", b"") for i in range(11)))
    assert "unpack to more than" in refusal(folder, archive)


@pytest.mark.parametrize("name", ["a.tgz", "a.tar", "a.zip", "a.tar.xz", "a.tar.bz2"])
@pytest.mark.parametrize("damage", ["html", "empty", "cut off"])
def test_damaged_archives(tmp_path, name, damage):
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = folder / name
    if name.endswith("zip"):
        with zipfile.ZipFile(archive, "w") as out:
            out.writestr("x.bin", os.urandom(100_000))
    else:
        mode = {"a.tgz": "w:gz", "a.tar": "w", "a.tar.xz": "w:xz", "a.tar.bz2": "w:bz2"}[name]
        with tarfile.open(archive, mode) as out:
            info, content = member("x.bin", os.urandom(100_000))
            out.addfile(info, io.BytesIO(content))
    content = archive.read_bytes()
    archive.write_bytes({"html": b"<html>404</html>", "empty": b"", "cut off": content[: len(content) // 2]}[damage])
    assert "cannot be unpacked" in refusal(folder, archive)


def _twelve(archive: Path, mode: str) -> bytes:
    with tarfile.open(archive, mode, format=tarfile.USTAR_FORMAT) as out:
        for number in range(12):
            info, content = member(f"{number:02d}.bin", bytes([number]) * 1024)
            out.addfile(info, io.BytesIO(content))
    return archive.read_bytes()


MEMBER_BYTES = 512 + 1024


@pytest.mark.parametrize("damage", ["inside a header", "between members", "bit of a header"])
def test_a_tar_that_is_damaged_in_the_middle_is_not_taken_for_a_short_one(tmp_path, damage):
    folder = tmp_path / "inner"
    folder.mkdir()
    content = bytearray(_twelve(folder / "a.tar", "w"))
    if damage == "bit of a header":
        content[6 * MEMBER_BYTES + 1] ^= 1
    else:
        del content[6 * MEMBER_BYTES + (100 if damage == "inside a header" else 0) :]
    (folder / "a.tar").write_bytes(content)
    assert "cannot be unpacked" in refusal(folder, folder / "a.tar")


def test_the_checksum_of_a_compressed_tar_is_looked_at(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    plain = bytearray(_twelve(folder / "a.tar", "w"))
    whole = gzip.compress(bytes(plain))
    plain[6 * MEMBER_BYTES + 700] ^= 1  # inside a file, where tar itself sees nothing
    broken = gzip.compress(bytes(plain))[:-8] + whole[-8:]
    (folder / "a.tar").unlink()
    (folder / "a.tgz").write_bytes(broken)
    assert "CRC" in refusal(folder, folder / "a.tgz")


def test_file_and_folder_of_one_name(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    assert "cannot be unpacked" in refusal(folder, tar_of(folder / "a.tgz", member("a"), member("a/b")))
