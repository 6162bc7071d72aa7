"""Folders of data files, on disk or behind an address: s3:// and gs:// through pyarrow, other schemes through fsspec."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

# What pyarrow and fsspec raise for addresses, missing files and refused logins.
_ERRORS = (OSError, ValueError, ImportError, NotImplementedError)


def is_address(root: str) -> bool:
    """True for `scheme://...`, false for a path."""
    return "://" in root


def without_password(root: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"://[^/@]*@", "://***@", root)


def absolute(root: str) -> str:
    """A path as processes with another working directory can use it; addresses as they are."""
    return root if is_address(root) else str(Path(root).expanduser().resolve())


@dataclass(frozen=True)
class Place:
    """A folder; names below it are relative, with '/'."""

    filesystem: FileSystem
    path: str
    shown: str
    """What was typed, without a password."""

    @classmethod
    def open(cls, root: str) -> Place:
        """Open a folder by path or address; nothing is read yet.

        Raises:
            ValueError: if no library knows the address.
        """
        from pyarrow.fs import FileSystem, LocalFileSystem

        if not is_address(root):
            return cls(LocalFileSystem(), str(Path(root).expanduser().resolve()), root)
        shown = without_password(root)
        scheme = root.partition("://")[0]
        try:
            known = scheme in ("s3", "gs", "gcs", "hdfs", "viewfs", "file", "abfs", "abfss", "hf")
            filesystem, path = FileSystem.from_uri(root if known or "+" in scheme else f"fsspec+{root}")
        except _ERRORS as error:
            raise ValueError(
                f"data.root: {shown}: cannot be opened ({_first_line(error)}); use a folder or an address such as s3://bucket/folder"
            ) from None
        return cls(filesystem, path.rstrip("/"), shown)

    @property
    def is_local(self) -> bool:
        """True if files are on this machine's disk (or look like it, as NFS does)."""
        return self.filesystem.type_name == "local"

    def below(self, name: str) -> str:
        """The filesystem's own path of a file in the folder."""
        assert not name.startswith("/") and ".." not in name.split("/"), f"{name!r} leaves its folder"
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        """True if a file of this name is there.

        Raises:
            ValueError: if the place cannot be asked.
        """
        from pyarrow.fs import FileType

        with self._readable(name):
            return self.filesystem.get_file_info(self.below(name)).type == FileType.File

    def list(self) -> dict[str, int]:
        """Files directly in the folder and their sizes in bytes, sorted, without hidden ones; empty if there is none.

        Raises:
            ValueError: if the place cannot be asked.
        """
        from pyarrow.fs import FileSelector, FileType

        with self._readable(""):
            found = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        files = {info.base_name: info.size for info in found if info.type == FileType.File}
        return {name: files[name] for name in sorted(files) if not name.startswith(".")}

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            ValueError: naming the file, if it cannot be read.
        """
        with self._readable(name), self.filesystem.open_input_stream(self.below(name), compression=None) as stream:
            return stream.read()

    def open_file(self, name: str) -> NativeFile:
        """A file for reading anywhere in it.

        Raises:
            ValueError: naming the file, if it cannot be opened.
        """
        with self._readable(name):
            return self.filesystem.open_input_file(self.below(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[NativeFile]:
        """A stream to a file that appears under its name when all of it is written, and not at all after an error.

        Raises:
            ValueError: if the folder cannot be written. A full disk stays an OSError.
        """
        try:
            with self._stream(name) as stream:
                yield stream
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise ValueError(
                f"--out {self.shown}: cannot be written ({_first_line(error)}); choose another folder"
            ) from None

    @contextmanager
    def _stream(self, name: str) -> Iterator[NativeFile]:
        if not self.is_local:  # object stores show a file only when its stream is closed
            self.filesystem.create_dir(self.path, recursive=True)
            with self.filesystem.open_output_stream(self.below(name), compression=None) as stream:
                yield stream
            return
        target = Path(self.path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{name}")
        try:
            with self.filesystem.open_output_stream(str(temporary), compression=None) as stream:
                yield stream
            _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def delete(self, name: str) -> None:
        """Remove a file."""
        self.filesystem.delete_file(self.below(name))

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            where = f"{self.shown}/{name}" if name else self.shown
            raise ValueError(
                f"data.root: {where}: cannot be read ({_first_line(error)}); complete the copy or check the address"
            ) from None


def _first_line(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.strip().splitlines()[0]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
