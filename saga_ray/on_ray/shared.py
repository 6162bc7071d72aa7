"""What every decoding task needs, once per node: in Ray's shared memory, in a form that is read where it lies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import ray

from saga_ray.config import DataConfig
from saga_ray.types import ImageSource

_LONG = 1000


@dataclass(frozen=True)
class Work:
    """What a decoding task is told beside its rows of the plan."""

    source: ImageSource
    labels_N: np.ndarray
    data: DataConfig
    seed: int

    def share(self) -> ray.ObjectRef:
        """Put it into the object store; tasks get it with `fetched`."""
        return ray.put(dataclasses.replace(self, source=in_place(self.source)))


@functools.lru_cache(maxsize=4)
def fetched(work: ray.ObjectRef) -> Work:
    """The work behind a reference, unpacked once per process and not once per task."""
    return ray.get(work)


class PackedStrings(Sequence[str]):
    """Strings in one array of bytes, which processes of a node share: ten million paths are not copied into each of them.

    Example: `PackedStrings(("a.jpg", "b.jpg"))[1]` is "b.jpg".
    """

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._ends_N = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes_B = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends_N) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """One string, or those of a slice."""
        if isinstance(place, slice):
            return [self[at] for at in range(len(self))[place]]
        at = range(len(self))[place]
        return self._bytes_B[self._ends_N[at] : self._ends_N[at + 1]].tobytes().decode("utf-8", "surrogateescape")


def in_place(value: Any) -> Any:
    """A source whose long tuples of strings, its own or those of dataclasses in it, are packed."""
    if isinstance(value, tuple) and len(value) >= _LONG and all(isinstance(item, str) for item in value):
        return PackedStrings(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        packed = {name: in_place(part) for name, part in parts.items()}
        if any(packed[name] is not part for name, part in parts.items()):
            return dataclasses.replace(value, **packed)
    return value
