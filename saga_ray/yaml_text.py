"""YAML as people mean it: `1e-4` is a number, a key that stands twice is a mistake, and every mistake is a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from saga_ray.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader in which `1e-4` is a number, duplicate keys and aliases are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise ConfigError(
                f"line {self.peek_event().start_mark.line + 1}: YAML aliases are not accepted; write the value out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key '{key}' stands twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML safely.

    Raises:
        ConfigError: naming `source` and the line, for bad syntax, duplicate keys or aliases.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{source}{where}: not valid YAML ({getattr(error, 'problem', None) or error}); correct it"
        ) from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping from a YAML file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); name an existing YAML file") from None
    value = parse_yaml(text, str(path)) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds {type(value).__name__} where a mapping of keys is expected")
    return value
