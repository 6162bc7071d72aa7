"""What decoding tasks share: strings that are read where they lie."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga_ray.data.files.sources import FolderSource
from saga_ray.on_ray.shared import PackedStrings, in_place


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=8))
def test_packed_strings_are_the_strings(strings: list[str]) -> None:
    packed = PackedStrings(strings)
    assert list(packed) == strings and packed[1:] == strings[1:]
    assert [packed[-1 - i] for i in range(len(strings))] == strings[::-1]
    for outside in (len(strings), -len(strings) - 1):
        with pytest.raises(IndexError):
            packed[outside]


def test_names_that_are_no_utf8_survive() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert PackedStrings([name])[0] == name


@dataclass(frozen=True)
class Outer:
    inner: FolderSource
    size: int


def test_long_names_travel_as_buffers_and_short_ones_as_they_are() -> None:
    paths = tuple(f"{i}.jpg" for i in range(5000))
    packed = in_place(Outer(FolderSource(paths, "/images", 20), 3))
    assert packed.inner.path(4999) == FolderSource(paths, "/images").path(4999) and packed.inner.cut_bottom == 20
    buffers: list[pickle.PickleBuffer] = []
    in_band = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    assert len(in_band) < 2000, "what every process unpacks for itself does not grow with the number of names"
    assert sum(len(buffer.raw()) for buffer in buffers) > 5000
    few = FolderSource(paths[:3], "/images")
    assert in_place(few) is few
    table = np.zeros(3)
    assert in_place(table) is table
