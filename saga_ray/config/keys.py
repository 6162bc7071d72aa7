"""Dotted keys of a configuration: which there are, what they mean, and the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from saga_ray.config.run import RunConfig


def model_keys() -> Iterator[str]:
    """Every dotted key of a run, leaves only."""
    return (key for key, _ in _leaves(RunConfig))


def key_meanings() -> dict[str, str]:
    """What every dotted key means, in one line."""
    return {key: " ".join(field.description.split()) for key, field in _leaves(RunConfig) if field.description}


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what its section holds, or nothing."""
    known = list(known)
    section, _, leaf = word.rpartition(".")
    inside = {key.rpartition(".")[2]: key for key in known if section and key.rpartition(".")[0] == section}
    if inside:
        hits = [inside[name] for name in difflib.get_close_matches(leaf, inside, n=1, cutoff=0.6)]
    else:
        hits = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    # The right leaf under the wrong branch.
    hits = hits or [key for key in known if key.rpartition(".")[2] == leaf]
    if hits:
        return f"; did you mean '{hits[0]}'?"
    return f"; {section} has {', '.join(inside)}" if inside else ""


def check_choice(what: str, value: str, known: Iterable[str]) -> str | None:
    """One sentence if `value` is not among `known`, else None."""
    known = list(known)
    if value in known:
        return None
    return f"{what} '{value}' is unknown{nearest(value, known)} (known: {', '.join(known)})"


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    out: dict[str, Any] = {}
    for key, value in dotted.items():
        *branches, leaf = key.split(".")
        level = out
        for branch in branches:
            if not isinstance(level.get(branch), dict):
                level[branch] = {}  # a value where a group belongs is reported by its key
            level = level[branch]
        level[leaf] = (
            merged(level[leaf], value) if isinstance(value, Mapping) and isinstance(level.get(leaf), Mapping) else value
        )
    return out


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, branch by branch."""
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out
