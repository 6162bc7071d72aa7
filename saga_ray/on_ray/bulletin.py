"""Where workers pin what the driver wants to know while they run: progress, results, and refusals."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from saga_ray.train.errors import NonFiniteError


@dataclass(frozen=True)
class Refusal:
    """Why something cannot work."""

    sentence: str
    not_a_number: bool
    """A loss or gradient stopped being a number; an exception's type would be lost on its way."""

    def error(self) -> ValueError:
        """What the driver raises, of the type that the worker raised."""
        return (NonFiniteError if self.not_a_number else ValueError)(self.sentence)


@ray.remote(num_cpus=0)
class Bulletin:
    """A board in a process of its own; it goes away with the driver that made it."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, Any]] = []
        self._refusal: Refusal | None = None
        self._claims: set[str] = set()

    def pin(self, kind: str, note: Any) -> None:
        """Add a note; `read` returns notes in this order."""
        self._notes.append((kind, note))

    def read(self, start: int) -> list[tuple[str, Any]]:
        """Notes from number `start` on."""
        return self._notes[start:]

    def refuse(self, sentence: str, not_a_number: bool = False) -> None:
        """Say once and for all why this cannot work: a worker that starts again does not try."""
        self._refusal = self._refusal or Refusal(sentence, not_a_number)

    def refusal(self) -> Refusal | None:
        """What was said first, if anybody refused."""
        return self._refusal

    def claim(self, name: str) -> bool:
        """True for the first who asks for `name`, until it is released."""
        if name in self._claims:
            return False
        self._claims.add(name)
        return True

    def release(self, name: str) -> None:
        """Let the next one have `name`."""
        self._claims.discard(name)


class PinnedWarnings(logging.Handler):
    """Warnings of our own code in a worker, pinned for the driver, which says them again."""

    def __init__(self, board: ActorHandle) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Pin the text."""
        self._board.pin.remote("warning", record.getMessage())


@contextlib.contextmanager
def pinned_warnings(board: ActorHandle) -> Iterator[None]:
    """Pin what `saga_ray` warns of in this process while the context lasts."""
    ours, handler = logging.getLogger("saga_ray"), PinnedWarnings(board)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


@contextlib.contextmanager
def bulletin(on_note: Callable[[str, Any], None], every_s: float = 0.3) -> Iterator[ActorHandle]:
    """A board whose notes are handed to `on_note` as they come, by a thread of this process; all are, when it ends."""
    board = Bulletin.remote()
    ended = threading.Event()
    seen = 0

    def hand_over() -> None:
        nonlocal seen
        notes = ray.get(board.read.remote(seen), timeout=60)
        seen += len(notes)
        for kind, note in notes:
            if kind == "warning":
                logging.getLogger("saga_ray.on_ray").warning("%s", note)
            else:
                on_note(kind, note)

    def watch() -> None:
        while not ended.wait(every_s):
            with contextlib.suppress(RayActorError, GetTimeoutError):
                hand_over()

    thread = threading.Thread(target=watch, name="bulletin", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join(timeout=90)
        if ray.is_initialized():
            with contextlib.suppress(RayActorError, GetTimeoutError):
                hand_over()
            ray.kill(board)
