"""Downloads of owners' archives: pooch checks and moves them into place, parts that arrived are kept and continued."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_ray.data.benchmarks.origins import OriginFile
from saga_ray.types import OnProgress

if TYPE_CHECKING:
    from requests import Response

TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection is given up."""
_CHUNK_BYTES = 2**16
"""What arrived of a chunk is lost when the connection breaks: small ones."""
_TRIES = 5


def download(file: OriginFile, out: Path, progress: OnProgress, *, timeout_s: float = TIMEOUT_S) -> Path:
    """Fetch one file into a folder, whole and with the right checksum, or not at all; one that is there and right is kept.

    What an interrupted attempt got is in `.NAME.part` and is continued where the server can do that.

    Raises:
        ValueError: for an address that is dead or gives a web page, a connection that keeps breaking, another checksum, or a
            disk without room.
    """
    pooch = _pooch()
    if file.url is None:
        raise ValueError(f"{file.name}: its owner offers it no longer; `saga-ray data help` names copies")
    out.mkdir(parents=True, exist_ok=True)
    known = f"md5:{file.md5}" if file.md5 else None
    fetch = _Resuming(out / f".{file.name}.part", progress, timeout_s)
    try:
        return Path(pooch.retrieve(file.url, known, fname=file.name, path=out, downloader=fetch))
    except _Refused as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise ValueError(
            f"{file.url}: the file has another checksum than md5 {file.md5} and was thrown away; try again, or get it by hand "
            f"(`saga-ray data help` says where)"
        ) from None


def _pooch() -> Any:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name}: not installed; pip install pooch, or download by hand (`saga-ray data help` says where)"
        ) from None
    pooch.get_logger().setLevel(logging.ERROR)
    return pooch


class _Refused(Exception):
    """A sentence for the user, on its way through pooch."""


@dataclass
class _Resuming:
    """A downloader for pooch that continues a part."""

    part: Path
    progress: OnProgress
    timeout_s: float

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        import requests

        failure: Exception | None = None
        for _ in range(_TRIES):
            before = self._size()
            try:
                self._fetch(url)
                shutil.move(self.part, output_file)
                return
            except requests.RequestException as error:
                failure = error
                if self._size() <= before:  # nothing new came: another try would do no better
                    break
        raise _Refused(
            f"{url}: the connection broke after {self._size():,} bytes ({_reason(failure)}); type the command again to go on, or get the "
            f"file by hand (`saga-ray data help` says where)"
        )

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self, url: str) -> None:
        import requests

        there = self._size()
        # Compressed on the way, a range would be one of other bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
        with requests.get(url, stream=True, timeout=self.timeout_s, headers=headers) as response:
            if response.status_code == 416:  # the part is the whole, or of another file: the checksum will tell
                if response.headers.get("Content-Range", "").rpartition("/")[2] == str(there):
                    return
                self.part.unlink()
                return self._fetch(url)
            _check_answer(url, response)
            goes_on = response.status_code == 206 and _begins_at(response) == there
            if response.status_code == 206 and not goes_on:
                self.part.unlink()
                return self._fetch(url)
            there = there if goes_on else 0
            left = int(response.headers.get("Content-Length") or 0)
            self._check_room(url, left)
            with self.part.open("ab" if goes_on else "wb") as stream:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    if there == 0 and chunk.lstrip()[:1] == b"<":
                        raise _Refused(_page(url))
                    stream.write(chunk)
                    there += len(chunk)
                    left = max(0, left - len(chunk))
                    self.progress(there, there + left)

    def _check_room(self, url: str, num_bytes: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if num_bytes > free:
            raise _Refused(
                f"{url}: {num_bytes / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free in {self.part.parent}; make room, or name "
                f"another folder with --out DIR"
            )


def _check_answer(url: str, response: Response) -> None:
    if response.status_code >= 400:
        raise _Refused(
            f"{url}: answers {response.status_code} {response.reason}; the address may be dead, get the file by hand "
            f"(`saga-ray data help` says where)"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _Refused(_page(url))


def _page(url: str) -> str:
    return (
        f"{url}: gives a web page in place of the file (a login or a notice?); open it in a browser and get the file by hand "
        f"(`saga-ray data help` says where)"
    )


def _begins_at(response: Response) -> int:
    """First byte of an answer to a range: `bytes 100-199/200`."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else -1


def _reason(error: Exception | None) -> str:
    return str(error).splitlines()[0] if error is not None and str(error) else type(error).__name__
