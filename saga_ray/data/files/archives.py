"""Archives as owners ship them (tar, also compressed, and zip), unpacked once, without trusting what is in them.

A tree appears under its name only when it is whole: members are written to a hidden folder beside it, which is renamed at the
end. Only files and folders below the archive's own root are accepted; links, devices, `..`, absolute names and more than
`MAX_RATIO` times the archive's size are refused, and then nothing stays behind. Python's own extraction filters are not
relied on: CVE-2025-4517 passes them on interpreters that are still common.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import logging
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
MARKER = ".saga-ray-unpacked.json"
"""Written into the tree before it gets its name: from which archives it is, known again by name, size and time."""
MAX_RATIO, SPARE_BYTES = 30, 64 * 2**20
"""More unpacked bytes than SPARE_BYTES + MAX_RATIO x the archive's size are taken for a bomb; photographs do not shrink."""
MAX_MEMBERS = 5_000_000
LOOSE_FILES = ("cars_annos.mat", "cars_test_annos_withlabels.mat", "train_mini.json", "train.json")
"""Lists that owners ship beside their archives and that belong to the tree."""

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
_SECONDS_BETWEEN_NOTES = 15


class RefusedMemberError(ValueError):
    """An archive holds something that is never unpacked."""


def is_archive(path: Path) -> bool:
    """True for a file whose name ends as an archive's."""
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def archives_in(folder: Path, stems: Sequence[str]) -> list[Path]:
    """The archives directly in a folder that are called as one of `stems`, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_archive(path) and archive_stem(path) in stems)


def unpacked(archives: Sequence[Path]) -> Path:
    """The folder of what is in one archive, or in several of one folder together; unpacks what was not unpacked yet.

    The tree lies beside the archive (`CUB_200_2011.tgz` becomes `CUB_200_2011.unpacked/`), or, where it is not there and cannot be
    written, in `$XDG_CACHE_HOME/saga-ray` (`~/.cache/saga-ray`), which other machines do not see. `LOOSE_FILES` beside the
    archives join it.

    Raises:
        ValueError: one sentence, naming the archive, for one that is damaged or refused, and for a full or read-only disk.
    """
    try:
        return _unpacked(archives)
    except OSError as error:
        raise ValueError(
            f"data.root: {archives[0]} cannot be unpacked ({error.strerror or error}); unpack it by hand and name the folder with --data-root DIR"
        ) from None


def _unpacked(archives: Sequence[Path]) -> Path:
    parent = archives[0].parent
    sources = [*archives, *(parent / name for name in LOOSE_FILES if (parent / name).is_file())]
    identity = [{"name": p.name, "bytes": p.stat().st_size, "modified_ns": p.stat().st_mtime_ns} for p in sources]
    name = "+".join(map(archive_stem, archives)) + ".unpacked"
    if not os.access(parent, os.W_OK):
        if (
            _identity(parent / name) == identity
        ):  # somebody who may write here unpacked it, or the folder was locked since
            return parent / name
        key = hashlib.sha256(json.dumps([str(parent), identity]).encode()).hexdigest()[:12]
        parent, name = _cache_folder(), f"{name}-{key}"
    target = parent / name
    with _locked(parent / f".{name}.lock") as alone:
        if _identity(target) == identity:
            return target
        if target.exists() and _identity(target) is None:
            raise ValueError(
                f"data.root: {archives[0]} would be unpacked into {target}, which is there and was not made by saga-ray; "
                f"move it away, or name the folder of the images with --data-root DIR"
            )
        _make(target, sources, identity, alone)
    return target


def archive_stem(archive: Path) -> str:
    """An archive's name without its ending."""
    ending = next(ending for ending in sorted(ENDINGS, key=len, reverse=True) if archive.name.lower().endswith(ending))
    return archive.name[: -len(ending)] or archive.name


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "saga-ray")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """One process unpacks, others wait for it; False where a filesystem has no locks: then the last rename wins."""
    import fcntl

    with path.open("w") as file:
        alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone


def _identity(target: Path) -> list[dict[str, object]] | None:
    try:
        return json.loads((target / MARKER).read_text(encoding="utf-8"))["from"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(target: Path, sources: Sequence[Path], identity: list[dict[str, object]], alone: bool) -> None:
    prefix = f".{target.name}.unpacking-"
    for path in target.parent.iterdir():  # left by a process that was killed; without a lock it may be at work
        if alone and path.name.startswith(prefix):
            shutil.rmtree(path, ignore_errors=True)
    logger.warning("Unpacking %s into %s (once)", ", ".join(source.name for source in sources), target)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        folder.chmod(0o755)  # mkdtemp makes private folders, but whoever may read the archive may read its tree
        for source in sources:
            (_unpack if is_archive(source) else _link)(source, folder)
        (folder / MARKER).write_text(json.dumps({"from": identity}, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            stale = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            os.replace(target, stale)
            shutil.rmtree(stale, ignore_errors=True)
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _link(source: Path, folder: Path) -> None:
    if not (folder / source.name).exists():
        try:
            os.link(source, folder / source.name)
        except OSError:
            shutil.copyfile(source, folder / source.name)


def _unpack(archive: Path, folder: Path) -> None:
    """Write all members below `folder`.

    Raises:
        ValueError: one sentence, naming the archive.
    """
    budget = _Budget(archive)
    try:
        members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
        for name, size, content in members(archive):
            budget.take(name, size)
            place = _place(name, folder)
            if content is None:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(content, file, 2**20)
            if place.stat().st_size != size:
                raise EOFError(f"member '{name}' is cut off")
    except RefusedMemberError as error:
        raise ValueError(
            f"data.root: {archive}: {error}; this is not the owner's archive and nothing of it was kept"
        ) from None
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(
            f"data.root: {archive} cannot be unpacked into {folder.parent} ({reason}); download it again, or make room"
        ) from None


class _Budget:
    """Counts members and bytes before they are written."""

    def __init__(self, archive: Path) -> None:
        self._bytes_left = SPARE_BYTES + MAX_RATIO * archive.stat().st_size
        self._num_members, self._num_bytes, self._name = 0, 0, archive.name
        self._noted = time.monotonic()

    def take(self, name: str, size: int) -> None:
        self._num_members += 1
        self._num_bytes += size
        if size < 0 or self._num_bytes > self._bytes_left or self._num_members > MAX_MEMBERS:
            raise RefusedMemberError(
                f"member '{_shown(name)}' makes it unpack to more than an archive of its size holds"
            )
        if time.monotonic() - self._noted > _SECONDS_BETWEEN_NOTES:
            self._noted = time.monotonic()
            logger.warning("%s: %s files, %.1f GB", self._name, f"{self._num_members:,}", self._num_bytes / 1e9)


def _tar_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """(name, size, content or None for a folder) of a tar file, read as a stream: a damaged one cannot send us backwards."""
    with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # otherwise tarfile keeps every one of millions
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg() and not member.issparse():
                yield member.name, member.size, tar.extractfile(member)
            else:
                raise RefusedMemberError(f"member '{_shown(member.name)}' is neither a file nor a folder")
        while stream.read(2**20):  # checksums stand at the end
            pass


class _StrictHeader(tarfile.TarInfo):
    """A header that is damaged, or not there, is an error; `TarFile.next` would take it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """The next header.

        Raises:
            tarfile.EOFHeaderError: at the mark that ends an archive.
            tarfile.ReadError: where there is neither that nor a header.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error) or "it ends before its end") from None


def _decompressed(archive: Path) -> IO[bytes]:
    """The tar stream in a file; unlike tarfile's own streams, these check what they read."""
    with archive.open("rb") as file:
        start = file.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if start.startswith(magic):
            return opener(archive, "rb")
    return archive.open("rb")


def _zip_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                yield member.filename, 0, None
            elif kind in (0, stat.S_IFREG):
                with zipped.open(member) as content:
                    yield member.filename, member.file_size, content
            else:
                raise RefusedMemberError(f"member '{_shown(member.filename)}' is neither a file nor a folder")


def _place(name: str, folder: Path) -> Path:
    """Where a member goes.

    Raises:
        RefusedMemberError: for a name that is absolute, climbs up, or means other things on other systems.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or any(character in name for character in "\\\0\n\r"):
        raise RefusedMemberError(f"member '{_shown(name)}' leads out of it")
    if len(parts) > 0 and len(parts[0]) == 2 and parts[0][1] == ":":
        raise RefusedMemberError(f"member '{_shown(name)}' leads out of it")
    if not parts:
        return folder
    place = folder.joinpath(*parts)
    assert place.is_relative_to(folder)
    return place


def _shown(name: str) -> str:
    return name[:100].encode("unicode_escape").decode()
