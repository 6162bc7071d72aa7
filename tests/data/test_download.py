"""Downloads from a server of this process: parts go on, wrong files and web pages are refused, nothing is half there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from saga_ray.data.benchmarks.download import download
from saga_ray.data.benchmarks.origins import ORIGINS, OWN, OriginFile, instructions

CONTENT = np.random.default_rng(0).bytes(2**22)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in several ways; counts what was asked for."""

    asked: ClassVar[list[tuple[str, str | None]]] = []
    breaks_left = 0

    def do_GET(self) -> None:
        """Answer."""
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path != "/no-ranges" else 0
        if self.path == "/gone":
            return self.send_error(404)
        if self.path in ("/page", "/disguised"):
            return self._send(200, b"  <!DOCTYPE html><p>Sign in</p>", {"Content-Type": "text/html; charset=utf-8" if self.path == "/page" else "application/gzip"})  # fmt: skip
        if start >= len(CONTENT):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(CONTENT)}"})
        content = CONTENT[start:] if self.path != "/wrong" else CONTENT[start:-1] + b"?"
        headers = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
        self._send(206 if start else 200, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path == "/breaks" and Handler.breaks_left:
            Handler.breaks_left -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """Stay silent."""


@pytest.fixture
def address() -> Iterator[str]:
    """A server on the loopback device."""
    Handler.asked, Handler.breaks_left = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, client: None  # a client that leaves early is part of the tests
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetched(address: str, path: str, out: Path, md5: str | None = MD5) -> Path:
    return download(OriginFile("birds.tgz", f"{address}/{path}", len(CONTENT), md5), out, lambda done, total: None, timeout_s=5)  # fmt: skip


def test_a_file_comes_once_and_is_checked(address: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    file = OriginFile("birds.tgz", f"{address}/whole", len(CONTENT), MD5)
    path = download(file, tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "birds.tgz" and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)
    assert download(file, tmp_path / "new", lambda done, total: None) == path
    assert len(Handler.asked) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["birds.tgz"]


def test_a_part_is_continued(address: str, tmp_path: Path) -> None:
    (tmp_path / ".birds.tgz.part").write_bytes(CONTENT[:1_234_567])
    assert fetched(address, "whole", tmp_path).read_bytes() == CONTENT
    assert Handler.asked == [("/whole", "bytes=1234567-")]


def test_a_connection_that_breaks_is_continued(address: str, tmp_path: Path) -> None:
    Handler.breaks_left = 2
    assert fetched(address, "breaks", tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in Handler.asked] == [None, "bytes=2097152-", "bytes=3145728-"]


def test_a_connection_that_keeps_breaking_leaves_a_part_for_the_next_time(address: str, tmp_path: Path) -> None:
    Handler.breaks_left = 5
    with pytest.raises(ValueError, match=r"connection broke after 4,063,232 bytes.*type the command again"):
        fetched(address, "breaks", tmp_path)
    assert not (tmp_path / "birds.tgz").exists()
    assert fetched(address, "breaks", tmp_path).read_bytes() == CONTENT
    assert Handler.asked[-1] == ("/breaks", "bytes=4063232-")


def test_a_server_without_ranges_begins_anew(address: str, tmp_path: Path) -> None:
    (tmp_path / ".birds.tgz.part").write_bytes(b"x" * 1000)
    assert fetched(address, "no-ranges", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_as_long_as_the_file_or_longer_is_judged_by_its_checksum(address: str, extra: int, tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / ".birds.tgz.part").write_bytes(CONTENT + b"x" * extra)
    assert fetched(address, "whole", tmp_path).read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(address: str, tmp_path: Path) -> None:
    (tmp_path / ".birds.tgz.part").write_bytes(b"y" * 1000)
    with pytest.raises(ValueError, match="another checksum"):
        fetched(address, "whole", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetched(address, "whole", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("wrong", "another checksum than md5"),
        ("page", "gives a web page in place of the file"),
        ("disguised", "gives a web page in place of the file"),
        ("gone", "answers 404"),
    ],
)
def test_what_is_not_the_file_is_refused(path: str, words: str, address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        fetched(address, path, tmp_path)
    assert words in str(caught.value) and f"/{path}" in str(caught.value) and "\n" not in str(caught.value)
    assert "saga-ray data help" in str(caught.value)
    assert not [entry for entry in tmp_path.iterdir() if entry.stat().st_size], "nothing of it may stay"


def test_a_dead_address_and_a_full_disk_are_sentences(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with pytest.raises(ValueError, match="offers it no longer"):
        download(OriginFile("cars.tgz"), tmp_path, lambda done, total: None)
    with pytest.raises(ValueError, match="connection broke after 0 bytes"):
        download(OriginFile("a.tgz", "http://127.0.0.1:9/a.tgz", md5=MD5), tmp_path, lambda done, total: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match="make room"):
        fetched(address, "whole", tmp_path)


def test_every_data_set_has_instructions_with_checksums() -> None:
    for name, origin in ORIGINS.items():
        text = "\n".join(instructions(name))
        assert "saga-ray data check" in text and origin.page in text
        for file in origin.files:
            assert file.md5 is not None and len(file.md5) == 32 and file.md5 in text
            assert file.url is None or file.url.startswith("https://")
    assert all(instructions(name) for name in OWN)
    assert not any(file.url for file in ORIGINS["cars"].files), "not found since 2023"
