"""What the tests measured of every family, as they wrote it, and the table of it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

_COLUMNS = {
    "family": "family",
    "native_logits": "native logits",
    "gradient_single": "gradient float32",
    "gradient_double": "gradient float64",
    "attention": "attention",
    "levels": "levels",
    "tested": "tested model",
}


_LEGEND = (
    "native logits: relative error of the logits, injected tokens against the library's own way from pixels",
    "gradient: relative error at the tokens, one shared prompt against a copy per answer, of the worst image and level",
    "attention: absolute error of the maps against eager attention",
    "levels: sets of tokens per image, more than one with DeepStack",
)


def capabilities() -> dict[str, Any]:
    """`capabilities.json`: library versions, and per family the largest errors that its tests saw (see `_LEGEND`)."""
    return json.loads(files("saga_ray.mllm.families").joinpath("capabilities.json").read_text(encoding="utf-8"))


def families_table(told: dict[str, Any]) -> str:
    """Lines of aligned columns, and below them who is refused and why."""
    from saga_ray.mllm.families import REFUSED

    rows = [list(_COLUMNS.values())]
    for name, values in told["families"].items():
        rows.append([name, *(_written(values[key]) for key in list(_COLUMNS)[1:])])
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(name)
    refused = [f"refused: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join([*lines, "", *_LEGEND, "", *refused])


def _written(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)
