"""Pages from templates: everything filled in is escaped, nothing is loaded from elsewhere, no script runs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment

    from saga_ray.storage import Storage


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("saga_ray.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_template(name: str, **values: Any) -> str:
    """Fill in a template of this package; a value that it needs and does not get is an error."""
    return _environment().get_template(name).render(**values)


def as_storage(folder: Storage | Path | str) -> Storage:
    """A folder for a page and its pictures."""
    from saga_ray.storage import Storage

    return folder if isinstance(folder, Storage) else Storage.open(folder)


def visible(text: str) -> str:
    """Text without characters that hide or reorder what stands around them (controls, right-to-left marks)."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
