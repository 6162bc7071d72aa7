"""Ranges of dotted keys, as sweep and study files write them, and the points of a search that are drawn before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saga_ray.config.keys import model_keys, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi")
KINDS = ("uniform", "loguniform", "int", "logint", "choice")
# A search decides these itself: it chooses on validation classes, and its trials share their machines.
_NOT_SEARCHED = ("dataset", "recipe", "method", "evaluation.split", "checkpoint", "resources", "scorer")
# What other images, classes or pictures come with: scores on different data cannot be compared, the easiest would win.
_CHANGES_THE_DATA = tuple(
    f"data.{key}"
    for key in (
        "root", "image_size", "decode", "validation_share", "world_seed", "confound", "home", "gap", "shift", "tied", "neighbour_distance",
        "num_classes", "num_images",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Values of one dotted key: `uniform`, `loguniform`, `int`, `logint` between two ends, or a `choice` among some."""

    kind: str
    values: tuple[Any, ...]


def read_space(told: Any, where: str) -> tuple[dict[str, Range], list[str]]:
    """The ranges in a file's mapping, and every mistake in it; `where` begins each sentence."""
    if not isinstance(told, dict) or not told:
        return {}, [
            f"{where}: {told!r} names nothing to search; write for instance "
            f"space: {{loss.weights.grpo: {{loguniform: [0.1, 10]}}}}"
        ]
    space, problems, known = {}, [], set(model_keys())
    for key, given in _leaves(told).items():
        if key not in known:
            problems.append(f"{where}: unknown key '{key}'{nearest(key, known)}")
        elif key in _NOT_SEARCHED or key.startswith(tuple(f"{k}." for k in _NOT_SEARCHED)):
            problems.append(
                f"{where}: {key} cannot be searched: a sweep sets it itself; put it under base, or remove it"
            )
        elif key in _CHANGES_THE_DATA:
            problems.append(
                f"{where}: {key} cannot be searched: it changes the data, and the easiest would win; put it under base"
            )
        elif not isinstance(given, dict) or len(given) != 1:
            problems.append(
                f"{where}: {key}: {given!r} is not a range; write one of {', '.join(KINDS)} with a list of values"
            )
        else:
            [(kind, values)] = given.items()
            sentence = _check_range(kind, values)
            if sentence:
                problems.append(f"{where}: {key}: {sentence}")
            else:
                space[key] = Range(kind, tuple(values))
    return space, problems


def _leaves(told: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested or dotted keys to dotted ones; a mapping with a range's name as its only key ends the descent."""
    out: dict[str, Any] = {}
    for key, value in told.items():
        branch = isinstance(value, dict) and value and not any(kind in value for kind in KINDS)
        if branch and any(isinstance(inner, dict) for inner in value.values()):
            out |= _leaves(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _check_range(kind: str, values: Any) -> str | None:
    if kind not in KINDS:
        return f"'{kind}' is not a kind of range{nearest(kind, KINDS)} (known: {', '.join(KINDS)})"
    if not isinstance(values, list) or not values:
        return f"{kind}: {values!r} is not a list of values; write for instance {kind}: [1, 10]"
    if kind == "choice":
        scalars = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
        return None if scalars else f"choice: {values!r} holds more than numbers, words and null; name single values"
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        return f"{kind}: {values!r} is not two numbers, the smaller one first; write for instance {kind}: [1, 10]"
    if kind.startswith("log") and numbers[0] <= 0:
        return f"{kind}: {values!r} begins at {numbers[0]}, and a logarithmic range needs a positive end; raise it"
    if kind in ("int", "logint") and not all(isinstance(value, int) for value in numbers):
        return f"{kind}: {values!r} has an end that is not a whole number; correct it"
    return None


def distributions(space: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """Ranges in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(span: Range) -> BaseDistribution:
        if span.kind == "choice":
            return CategoricalDistribution(span.values)
        kind = IntDistribution if span.kind in ("int", "logint") else FloatDistribution
        return kind(*span.values, log=span.kind.startswith("log"))

    return {key: one(span) for key, span in space.items()}


def draw_points(space: Mapping[str, Range], num_points: int, seed: int) -> list[dict[str, Any]]:
    """The points of a search: first the defaults (an empty point), then a scrambled Sobol sequence.

    They are drawn before anything is run, so trials are independent of each other and of the order in which they end;
    more points begin with the same ones, and rows with equal ranges get equal points. Floats have 3 digits.
    """
    if not space or num_points <= 1:
        return [{}] * min(1, num_points)
    import warnings

    import optuna
    from optuna.distributions import IntDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its interface may change; requirements.lock holds it still
        sampler = optuna.samplers.QMCSampler(
            scramble=True, seed=seed, warn_asynchronous_seeding=False, warn_independent_sampling=False
        )
    # Sobol's sequence knows no choices, but their places.
    choices = {key: span.values for key, span in space.items() if span.kind == "choice"}
    asked = distributions({key: span for key, span in space.items() if key not in choices})
    asked |= {key: IntDistribution(0, len(values) - 1) for key, values in choices.items()}
    asked = {key: asked[key] for key in sorted(asked)}
    search = optuna.create_study(sampler=sampler)
    points = []
    for _ in range(num_points):
        trial = search.ask(asked)
        search.tell(trial, 0.0)
        points.append({key: choices[key][value] if key in choices else value for key, value in trial.params.items()})
    # The sampler learns the ranges from its first point, which is not yet one of the sequence: the defaults stand there.
    return [{}] + [{key: _rounded(value) for key, value in point.items()} for point in points[1:]]


def _rounded(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value
