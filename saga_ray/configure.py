"""From recipe, method, file and `--set key=value` to one `RunConfig`; every mistake is reported at once, with the nearest key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from saga_ray.config import DATASETS, RECIPES, RunConfig
from saga_ray.config.keys import check_choice, flat, key_meanings, merged, model_keys, nearest, nested
from saga_ray.errors import ConfigError
from saga_ray.yaml_text import parse_yaml

_BASELINE = {
    "loss": {"weights": {"grpo": 0.0, "alignment": 0.0}},
    "encoder": {"pooler": "mean"},
}


def _baseline(metric: str) -> dict[str, Any]:
    return merged(_BASELINE, {"loss": {"metric": metric}})


def _without(**weights: float) -> dict[str, Any]:
    """SAGA without any loss but the metric one and those that are named."""
    return {"loss": {"weights": {"grpo": 0.0, "alignment": 0.0, **weights}}}


# A nucleus cuts off answers, and with them a share of a KL.
_WHOLE_SUPPORT = {"grpo": {"top_p": 1.0}}

METHODS: dict[str, dict[str, Any]] = {
    "pretrained": merged(_baseline("none"), {"encoder": {"trainable": "none"}, "optim": {"steps": 0}}),
    "proxy-anchor": _baseline("proxy-anchor"),
    "multi-similarity": _baseline("multi-similarity"),
    "infonce": _baseline("infonce"),
    "potential-field": _baseline("potential-field"),
    "potential-field+pooler": _without(),
    "potential-field+anchor": _without(anchor=1.0),
    "potential-field+reference-kl": merged(_without(reference_kl=1.0), _WHOLE_SUPPORT),
    "potential-field+alignment": _without(alignment=1.0),
    "potential-field+alignment+reference-kl": merged(_without(alignment=1.0, reference_kl=1.0), _WHOLE_SUPPORT),
    "potential-field+consensus": _without(alignment=1.0, consensus=1.0),
    "potential-field+generations": merged(
        _without(alignment=1.0, consensus=3.0),
        {"consensus": {"generations": 2, "first_metric": "infonce"}},
    ),
    "potential-field+grpo": {"loss": {"weights": {"alignment": 0.0}}},
    "potential-field+grpo-generic": {"loss": {"weights": {"alignment": 0.0}}, "prompt": {"variant": "generic"}},
    "saga": {},
    "saga+expected": {"grpo": {"reward": "expected", "top_p": 1.0}},
    "saga+consensus": {"loss": {"weights": {"consensus": 1.0}}},
}
"""Presets on top of a recipe; the recipe itself is SAGA."""

# Keys that say where and how fast a run happens, or which repetition it is: not part of what was tried.
_NOT_IN_LABEL = ("seed", "dataset", "recipe", "method", "resources", "checkpoint", "scorer", "evaluation", "data.root")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["grpo.group_size=4"]` to `{"grpo.group_size": 4}`; values are YAML scalars or lists."""
    out: dict[str, Any] = {}
    problems = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set {text}: is not key=value; write for instance --set grpo.group_size=4")
            continue
        try:
            out[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return out


def _unknown_keys(tree: Mapping[str, Any], source: str) -> list[str]:
    known = set(model_keys())
    branches = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    problems = []
    for key in flat(tree):
        if key in known:
            continue
        if key in branches:
            inside = sorted(k for k in known if k.startswith(f"{key}."))
            problems.append(f"{source}: {key} is a group of keys, not a value; set one of {', '.join(inside[:4])}, ...")
        else:
            problems.append(f"{source}: unknown key '{key}'{nearest(key, known)}")
    return problems


def _prune(tree: Mapping[str, Any], keep: set[str]) -> dict[str, Any]:
    return nested({key: value for key, value in flat(tree).items() if key in keep})


def _sentences(error: ValidationError) -> list[str]:
    out = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "value_error":  # our own validators name key, value and remedy
            out.append(message)
        else:
            message = message[0].lower() + message[1:]
            meaning = key_meanings().get(key)
            out.append(f"{key}: {item['input']!r} is not accepted: {message}" + (f" ({meaning})" if meaning else ""))
    return out


def recipe_values(recipe: str) -> dict[str, Any]:
    """The shipped base values of a recipe."""
    text = files("saga_ray.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"recipe {recipe}")


def read_vocabulary(name: str) -> tuple[bytes, str, str]:
    """Content of a vocabulary, where it was found, and its digest.

    Args:
        name: Of one in the package (`birds`), or a path.

    Raises:
        ConfigError: if there is neither.
    """
    shipped = files("saga_ray").joinpath("data", "vocabularies")
    names = sorted(each.name.removesuffix(".yaml") for each in shipped.iterdir() if each.name.endswith(".yaml"))
    try:
        found = shipped.joinpath(f"{name}.yaml") if name in names else Path(name).expanduser()
        content = found.read_bytes()
    except (OSError, ValueError):
        raise ConfigError(
            f"vocabulary '{name}' is neither a file that can be read nor a name{nearest(name, names)} "
            f"(known: {', '.join(names)})"
        ) from None
    return content, f"vocabulary {name}" if name in names else name, file_digest(content)


def file_digest(content: bytes) -> str:
    """What a configuration knows a file by: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def _digest_of_taxonomy(path: str) -> str:
    try:
        return file_digest(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name an existing YAML file") from None


def _pin(tree: dict[str, Any], group: str, key: str, digest_of: Callable[[str], str]) -> list[str]:
    """Fill in the digest of a file that is named, so that a change of the file is a change of the configuration."""
    values = tree.get(group)
    if not isinstance(values, Mapping) or not isinstance(values.get(key), str):
        return []
    try:
        digest = digest_of(values[key])
    except ConfigError as error:
        return [f"{group}.{key}: {error}"]
    meant = values.get(f"{key}_digest") or digest
    if meant != digest:
        return [f"{group}.{key}_digest: {meant} is not that of {values[key]} ({digest}); leave this key out"]
    tree[group] = {**values, f"{key}_digest": digest}
    return []


def resolve(
    dataset: str,
    *,
    method: str | None = None,
    recipe: str | None = None,
    file_values: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    source: str = "config",
) -> RunConfig:
    """Combine recipe, method, config file and dotted overrides, later ones over earlier ones.

    Args:
        dataset: Name of the data set; decides the default recipe (`demo` for `demo` and `folder`, else `paper`).
        method: Preset; what is given here or in `overrides` stands above what the file says, and so does `recipe`.
        file_values: Nested values of a config file.
        overrides: Dotted keys and their values, for instance `{"grpo.group_size": 4}`.

    Raises:
        ConfigError: every mistake at once, one sentence per line.
    """
    file_values, overrides = dict(file_values or {}), dict(overrides or {})
    problems = []
    chosen: dict[str, str | None] = {}
    for key, typed in (("dataset", dataset), ("method", method), ("recipe", recipe)):
        said = overrides.pop(key, None)
        if typed is not None and said not in (None, typed):
            problems.append(f"--set {key}={said}: '{typed}' was typed as well; give only one of the two")
        of_file = file_values.pop(key, None)
        value = next((value for value in (typed, said, of_file) if value is not None), None)
        chosen[key] = None if value is None else str(value)
    dataset = str(chosen["dataset"])
    method = chosen["method"] or "saga"
    recipe = chosen["recipe"] or ("demo" if dataset in ("demo", "folder") else "paper")
    on_top = merged(file_values, nested(overrides))
    choices = (("data set", dataset, DATASETS), ("recipe", recipe, RECIPES), ("method", method, METHODS))
    problems += [sentence for what, value, known in choices if (sentence := check_choice(what, value, known))]
    problems += _unknown_keys(file_values, source) + _unknown_keys(overrides, "--set")
    # The rest is checked all the same, on the nearest base that exists, so that every mistake is told at once.
    base = merged(recipe_values(recipe if recipe in RECIPES else "demo"), METHODS.get(method, METHODS["saga"]))
    tree = merged(base, _prune(on_top, set(model_keys())))
    tree |= {"dataset": dataset if dataset in DATASETS else "demo", "method": str(method)}
    tree |= {"recipe": recipe if recipe in RECIPES else "demo"}
    problems += _pin(tree, "prompt", "vocabulary", lambda name: read_vocabulary(name)[2])
    if tree.get("data", {}).get("hard_from") == "taxonomy":  # else it is not read, which the model says
        problems += _pin(tree, "data", "taxonomy", _digest_of_taxonomy)
    config, wrong = _validated(tree, base)
    problems += wrong
    if problems or config is None:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return config


def _validated(tree: dict[str, Any], base: Mapping[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """The config, or every sentence about it: wrong values are put back to `base`'s until cross-checks can run."""
    problems: list[str] = []
    while True:
        try:
            return RunConfig.model_validate(tree), problems
        except ValidationError as error:
            problems += _sentences(error)
            wrong = [".".join(map(str, item["loc"])) for item in error.errors()]
            values, defaults = flat(tree), flat(base)
            # Errors of a list stand at `key.index`, those of a cross-check at its group.
            bad = {key for key in values for place in wrong if place and f"{key}.".startswith(f"{place}.")}
            bad |= {key for key in values for place in wrong if place.startswith(f"{key}.")}
            repaired = {key: value for key, value in values.items() if key not in bad}
            repaired |= {key: defaults[key] for key in bad if key in defaults}
            if repaired == values:
                return None, problems
            tree = nested(repaired)


def with_override(config: RunConfig, key: str, value: Any) -> RunConfig:
    """A copy with one dotted key changed and everything checked again."""
    if key not in set(model_keys()):
        raise ConfigError(f"unknown key '{key}'{nearest(key, model_keys())}")
    try:
        return RunConfig.model_validate(merged(config.model_dump(), nested({key: value})))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error))) from None


def changed_keys(config: RunConfig) -> dict[str, Any]:
    """Keys whose value differs from recipe and method, without those that do not change what was tried."""
    base = merged(recipe_values(config.recipe), METHODS[config.method])
    base |= {"dataset": config.dataset, "recipe": config.recipe, "method": config.method}
    if config.data.root is not None:
        base = merged(base, {"data": {"root": config.data.root}})
    # `model_construct`-free: the preset on its own must itself be a valid configuration.
    preset = flat(RunConfig.model_validate(base).model_dump())
    mine = flat(config.model_dump())
    # Without training the optimiser's values mean nothing.
    without_effect = ("optim",) if config.encoder.trainable == "none" else ()
    skip = tuple(f"{key}." for key in (*_NOT_IN_LABEL, *without_effect))
    return {
        key: value
        for key, value in mine.items()
        if value != preset[key] and key not in _NOT_IN_LABEL and not key.startswith(skip)
    }


def label(config: RunConfig) -> str:
    """Name of a row: the method, and every key changed from it, so that ablations never share a row."""
    changes = ", ".join(f"{key}={_short(value)}" for key, value in sorted(changed_keys(config).items()))
    return f"{config.method} ({changes})" if changes else config.method


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_short(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,119}")


def check_run_name(name: str) -> str:
    """Return `name` if it can be a folder's name everywhere.

    Raises:
        ConfigError: for `../x`, empty names, slashes, names that Windows reserves.
    """
    reserved = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
    if not _RUN_NAME.fullmatch(name) or ".." in name or name.split(".")[0].lower() in reserved:
        raise ConfigError(
            f"--name {name!r}: is not a run name; use 1 to 120 letters, digits and . _ + = -, starting with a letter or digit"
        )
    return name


def default_run_name(config: RunConfig) -> str:
    """Label and seed as a folder name."""
    text = f"{label(config)}-seed{config.seed}"
    slug = re.sub(r"[^A-Za-z0-9._+=]+", "-", text).strip("-").replace("..", ".")
    if len(slug) > 120:
        slug = f"{slug[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return slug


def to_yaml(config: RunConfig) -> str:
    """The resolved config, as it is written beside every result."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def from_yaml(text: str, source: str) -> RunConfig:
    """Read back what `to_yaml` wrote."""
    try:
        return RunConfig.model_validate(parse_yaml(text, source))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in _sentences(error))) from None
