"""Files of runs and results, on local disk or any filesystem that pyarrow opens (s3://, gs://, file://, ...)."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class Storage:
    """A folder somewhere. Paths below it are relative, with '/', and never leave it."""

    filesystem: FileSystem
    root: str
    uri: str

    @classmethod
    def open(cls, uri: str | Path) -> Storage:
        """Open a folder by path or URI; nothing is created yet.

        Raises:
            ValueError: if pyarrow cannot open it.
        """
        from pyarrow.fs import FileSystem, LocalFileSystem

        text = str(uri)
        if "://" not in text:
            path = Path(text).expanduser().resolve()
            _check_folder(text, path)
            return cls(LocalFileSystem(), str(path), str(path))
        try:
            filesystem, root = FileSystem.from_uri(text)
        except Exception as error:  # pyarrow raises several kinds, all of them about the address
            sentence = f"--runs {text}: cannot be opened ({error}); use a folder or a URI such as s3://bucket/path"
            raise ValueError(_without_password(sentence)) from None
        if filesystem.type_name == "local":
            _check_folder(text, Path(root))
        return cls(filesystem, root.rstrip("/"), text)

    @property
    def is_local(self) -> bool:
        """True if paths are on this machine's disk."""
        return self.filesystem.type_name == "local"

    def child(self, name: str) -> Storage:
        """The folder `name` below this one."""
        address, mark, options = self.uri.partition("?")  # s3://bucket/runs?region=...
        return Storage(self.filesystem, self._path(name), f"{address.rstrip('/')}/{name}{mark}{options}")

    def local_path(self, path: str = "") -> Path:
        """Where `path` lies on disk; only for local storage."""
        assert self.is_local, f"{self.uri} is not on this machine"
        return Path(self._path(path))

    def _path(self, path: str) -> str:
        assert not path.startswith("/") and ".." not in path.split("/"), f"{path!r} leaves its folder"
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str = "") -> bool:
        """True if a file or folder is there."""
        from pyarrow.fs import FileType

        return self.filesystem.get_file_info(self._path(path)).type != FileType.NotFound

    def list(self, path: str = "") -> list[str]:
        """Names in a folder, sorted; empty if it does not exist."""
        from pyarrow.fs import FileSelector

        infos = self.filesystem.get_file_info(FileSelector(self._path(path), allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def read(self, path: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: if there is none.
        """
        with self.filesystem.open_input_stream(self._path(path), compression=None) as stream:
            return stream.read()

    def write(self, path: str, content: bytes) -> None:
        """Write a whole file: a reader sees the old content or the new one, never half of it."""
        target = self._path(path)
        if not self.is_local:  # object stores show a file only when its stream is closed
            self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with self.filesystem.open_output_stream(target, compression=None) as stream:
                stream.write(content)
            return
        temporary = _written_beside(Path(target), content)
        os.replace(temporary, target)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that must not exist yet; False, and nothing changed, if it does."""
        if not self.is_local:
            if self.exists(path):
                return False
            self.write(path, content)
            return True
        temporary = _written_beside(Path(self._path(path)), content)
        try:
            os.link(temporary, self._path(path))
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink()

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; no error if it is not there."""
        from pyarrow.fs import FileType

        target = self._path(path)
        kind = self.filesystem.get_file_info(target).type
        if kind == FileType.Directory:
            self.filesystem.delete_dir(target)
        elif kind == FileType.File:
            self.filesystem.delete_file(target)

    def check_writable(self) -> None:
        """Try a file in the folder; nothing is left behind, not even a folder that was not there.

        Raises:
            ValueError: naming the folder and the reason.
        """
        missing = (
            [path for path in (self.local_path(), *self.local_path().parents) if not path.exists()]
            if self.is_local
            else []
        )
        try:
            self.write(".saga-ray-write-test", b"")
            self.delete(".saga-ray-write-test")
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(
                f"--runs {_without_password(self.uri)}: cannot be written ({reason}); choose another folder"
            ) from None
        finally:
            for path in missing:
                with contextlib.suppress(OSError):  # another run may have begun to use it
                    path.rmdir()


def _check_folder(text: str, path: Path) -> None:
    """Refuse a path that a file stands in the way of.

    Raises:
        ValueError: naming the file.
    """
    existing = next((part for part in (path, *path.parents) if os.path.lexists(part)), None)
    if existing is not None and not existing.is_dir():
        raise ValueError(f"{text}: {existing} is a file, where a folder is needed; choose another folder")


def _without_password(uri: str) -> str:
    return re.sub(r"://[^/@]*@", "://***@", uri)


def _written_beside(target: Path, content: bytes) -> Path:
    """A complete, synced temporary file in the target's folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    # mkstemp makes private files; results are meant to be read by others.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)
    return Path(name)
