"""Large COCO files (`{"images": [...], "annotations": [...], ...}`) read one element at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_CHUNK = 2**20
_LONGEST = 2**24
"""Characters that one element may have; without a limit a missing bracket would bring a whole damaged file into memory."""
_DECODE = json.JSONDecoder().raw_decode
_SPACE = " \t\r\n"
_BEHIND = (*_SPACE, ",", ":", "]", "}")


def elements(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """The elements of the list that stands under `key` at the top of a JSON file, in order, in memory one by one.

    What stands before it is read over; what stands behind it is not read. `NaN`, which iNaturalist's files hold where a place
    is not known, is a number here, as Python's reader has it.

    Raises:
        ValueError: for text that is not JSON, no list under `key`, or elements that are not objects.
    """
    with path.open(encoding="utf-8") as file:
        text = _Text(file)
        text.expect("{")
        if text.peek() == "}":
            raise ValueError(f"no '{key}'")
        while True:
            name = text.value()
            text.expect(":")
            if text.peek() != "[":
                text.value()
            elif name == key:
                yield from _objects(text, key)
                return
            else:
                for _ in _list(text):
                    pass
            if text.take() == "}":
                raise ValueError(f"no '{key}'")


def _objects(text: _Text, key: str) -> Iterator[dict[str, Any]]:
    for element in _list(text):
        if not isinstance(element, dict):
            raise ValueError(f"'{key}' is no list of objects")
        yield element


def _list(text: _Text) -> Iterator[Any]:
    text.expect("[")
    if text.peek() == "]":
        text.take()
        return
    while True:
        yield text.value()
        mark = text.take()
        if mark == "]":
            return
        if mark != ",":
            raise ValueError(f"'{mark}' where a list goes on or ends")


class _Text:
    """A window that moves over a text file."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._at, self._ended = file, "", 0, False

    def _more(self) -> bool:
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + chunk, 0
        self._ended = not chunk
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is not space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> str:
        mark = self.peek()
        self._at += len(mark)
        return mark

    def expect(self, mark: str) -> None:
        found = self.take()
        if found != mark:
            raise ValueError(f"'{found}' where '{mark}' was expected" if found else "it ends early")

    def value(self) -> Any:
        """The next value, of any kind."""
        if not self.peek():
            raise ValueError("it ends early")
        while True:
            try:
                value, end = _DECODE(self._text, self._at)
                # A number at the window's end may go on behind it, as in 2.5|e7.
                if self._ended or self._text[end : end + 1] in _BEHIND:
                    self._at = end
                    return value
            except json.JSONDecodeError:
                if self._ended or len(self._text) - self._at > _LONGEST:
                    raise ValueError("it is damaged or ends early") from None
            self._more()
