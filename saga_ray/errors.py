"""Which errors are sentences for the user, and how they stay that on their way from another process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class ConfigError(ValueError):
    """All that is wrong with a configuration, one sentence per line."""


class Refused(ValueError):
    """A sentence for the user, marked as one where it was raised: an error loses its traceback between processes."""


def is_ours(error: BaseException) -> bool:
    """True if the error was raised by our own code: its text is then a sentence for the user.

    A ValueError of a library is a mistake of ours and keeps its traceback. One that came from a worker has none.
    """
    if type(error).__module__.startswith("saga_ray."):
        return True
    if type(error) is not ValueError:
        return False
    place = error.__traceback__
    if place is None:
        return True
    while place.tb_next is not None:
        place = place.tb_next
    return Path(place.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


@contextlib.contextmanager
def marked_refusals() -> Iterator[None]:
    """Mark our own sentences, so that another process can tell them from a library's ValueError."""
    try:
        yield
    except ValueError as error:
        if is_ours(error):
            raise Refused(str(error)) from error
        raise
