"""Storage: whole files or none, on disk, behind a URI, and in an object store."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from saga_ray.storage import Storage


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """Address of a bucket in an S3 server of this process."""
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        patch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"s3://bucket/runs?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()
    patch.undo()


@pytest.fixture(params=["path", "uri", "subtree", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "path":
        return Storage.open(tmp_path / "runs")
    if request.param == "uri":
        return Storage.open(f"file://{tmp_path}/runs")
    if request.param == "subtree":  # a filesystem that is not the local one, as far as Storage knows
        return Storage(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "runs", "subtree://runs")
    return Storage.open(request.getfixturevalue("object_store")).child(f"test-{os.path.basename(tmp_path)}")


def test_what_is_written_is_read_back(storage: Storage) -> None:
    assert not storage.exists("a/b.txt")
    assert storage.list() == []
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    storage.write("a/c.bin", bytes(range(256)))
    assert storage.read("a/b.txt") == b"two"
    assert storage.read("a/c.bin") == bytes(range(256))
    assert storage.list("a") == ["b.txt", "c.bin"]
    assert storage.exists("a") and storage.exists("a/b.txt")


def test_compressed_names_are_plain_bytes(storage: Storage) -> None:
    storage.write("x.gz", b"not gzip")
    assert storage.read("x.gz") == b"not gzip"


def test_a_missing_file_is_an_error_and_deleting_it_is_not(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    storage.delete("nothing")


def test_create_happens_once(storage: Storage) -> None:
    assert storage.create("row.json", b"first")
    assert not storage.create("row.json", b"second")
    assert storage.read("row.json") == b"first"


def test_delete_takes_a_folder_with_all_in_it(storage: Storage) -> None:
    storage.write("a/b/c", b"1")
    storage.delete("a")
    assert not storage.exists("a/b/c")


def test_a_child_is_the_folder_below_and_opens_by_its_address(storage: Storage) -> None:
    storage.write("a/b", b"1")
    child = storage.child("a")
    assert child.read("b") == b"1"
    if not storage.uri.startswith("subtree"):
        assert Storage.open(child.uri).read("b") == b"1"


def test_the_write_test_leaves_nothing_behind(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == []


def test_the_write_test_leaves_no_folder_behind(tmp_path: Path) -> None:
    Storage.open(tmp_path / "a" / "b").check_writable()
    assert list(tmp_path.iterdir()) == []


def test_paths_cannot_leave_their_folder(storage: Storage) -> None:
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(AssertionError, match="leaves its folder"):
            storage.read(path)


def test_of_many_writers_one_creates(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    won: list[int] = []

    def write(number: int) -> None:
        if storage.create("row", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("row") == str(won[0]).encode()
    assert os.listdir(tmp_path) == ["row"]


def test_an_interrupted_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(tmp_path)
    storage.write("file", b"old")

    def die(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        storage.write("file", b"new")
    assert storage.read("file") == b"old"


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Storage.open(tmp_path).write("file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("place", ["file", "file/runs", "file/a/b"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_in_the_way_is_named(tmp_path: Path, scheme: str, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=f"{tmp_path}/file is a file, where a folder is needed"):
        Storage.open(f"{scheme}{tmp_path}/{place}")


def test_an_unknown_scheme_is_a_sentence_without_the_password() -> None:
    with pytest.raises(ValueError, match=r"--runs what://\*\*\*@host/x: cannot be opened") as caught:
        Storage.open("what://user:secret@host/x")
    assert "secret" not in str(caught.value)
