"""A page of what the frozen MLLM agrees on for every training class, and where it wavers; one folder, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saga_ray.leaderboard.gallery import to_jpeg
from saga_ray.leaderboard.html import as_storage, render_template, visible

if TYPE_CHECKING:
    from pathlib import Path

    from saga_ray.storage import Storage

Shares = Mapping[str, Mapping[str, float]]
"""{attribute: {value: share of what was written}}."""
THUMBNAILS = "consensus"
MAX_VALUES = 6
"""Values that a bar shows; the rest is drawn as one."""
_LETTERED_FROM = 0.12


def write_consensus_page(
    folder: Storage | Path | str,
    title: str,
    shares: Mapping[str, Shares],
    *,
    taught: Mapping[str, Mapping[str, str]] | None = None,
    pictures: Mapping[str, Sequence[np.ndarray]] | None = None,
    truth: Mapping[str, Mapping[str, str]] | None = None,
    details: str = "",
    name: str = "consensus.html",
) -> str:
    """Write the page and its thumbnails; classes and their attributes stand in the order of wavering, most first.

    Args:
        shares: {class: {attribute: {value: share}}}, what the MLLM wrote of the class's training images; counts do too.
        taught: {class: {attribute: word}} as taught back, where that is known.
        pictures: {class: a few uint8 (H, W, 3)}.
        truth: {class: {attribute: word}} where a data set knows it; shown, never taught.

    Returns:
        Where the page lies.
    """
    storage = as_storage(folder)
    classes = [_class(each, shares[each], (taught or {}).get(each, {}), (truth or {}).get(each, {})) for each in shares]
    classes.sort(key=lambda each: (-each["wavering"], each["name"]))
    for number, each in enumerate(classes):
        each["pictures"] = []
        for place, picture_HWC in enumerate((pictures or {}).get(each["key"], ())):
            path = f"{THUMBNAILS}/{number:04d}-{place}.jpg"
            storage.write(path, to_jpeg(np.ascontiguousarray(picture_HWC)))
            each["pictures"].append(path)
    page = render_template(
        "consensus.html",
        title=visible(title),
        details=visible(details),
        classes=classes,
        summary=_summary(classes),
        has_taught=any(row["taught"] for each in classes for row in each["attributes"]),
        has_truth=any(row["truth"] for each in classes for row in each["attributes"]),
    )
    storage.write(name, page.encode())
    return storage.child(name).uri


def wavering(shares: Mapping[str, float]) -> float:
    """Share in [0, 1] of words other than the commonest: 0 where the MLLM always wrote the same, 0 also where it wrote nothing."""
    total = sum(shares.values())
    return 1 - max(shares.values()) / total if total > 0 else 0.0


def _class(key: str, shares: Shares, taught: Mapping[str, str], truth: Mapping[str, str]) -> dict[str, Any]:
    rows = [_attribute(name, shares[name], taught.get(name, ""), truth.get(name, "")) for name in shares]
    rows.sort(key=lambda row: -row["wavering"])
    return {
        "key": key,
        "name": visible(key.replace("_", " ")),
        "attributes": rows,
        "wavering": float(np.mean([row["wavering"] for row in rows])) if rows else 0.0,
    }


def _attribute(name: str, shares: Mapping[str, float], taught: str, truth: str) -> dict[str, Any]:
    total = sum(shares.values()) or 1.0
    ranked = sorted(
        ((value, share / total) for value, share in shares.items() if share > 0), key=lambda s: (-s[1], s[0])
    )
    rest = sum(share for _, share in ranked[MAX_VALUES:])
    bars = [_bar(value, share, value == taught) for value, share in ranked[:MAX_VALUES]]
    if rest > 0:
        bars.append(_bar(f"{len(ranked) - MAX_VALUES} other words", rest, False))
    # Without a taught word the commonest one is what the MLLM says of the class.
    said = taught or (ranked[0][0] if ranked else "")
    return {
        "name": visible(name.replace("_", " ")),
        "bars": bars,
        "wavering": wavering(shares),
        "taught": visible(taught),
        "truth": visible(truth),
        "is_right": bool(truth) and said == truth,
    }


def _bar(words: str, share: float, is_taught: bool) -> dict[str, Any]:
    percent = f"{100 * share:.0f} %"
    return {
        "words": visible(words),
        "percent": percent,
        "width": f"{100 * share:.2f}",
        "is_lettered": share >= _LETTERED_FROM,
        "is_taught": is_taught,
    }


def _summary(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per attribute, over classes: how much the MLLM agrees with itself and how often its word is true; least agreed first."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for each in classes:
        for row in each["attributes"]:
            rows.setdefault(row["name"], []).append(row)
    out = []
    for name, members in rows.items():
        known = [row["is_right"] for row in members if row["truth"]]
        agreed = 1 - float(np.mean([row["wavering"] for row in members]))
        right = f"{100 * float(np.mean(known)):.0f}" if known else ""
        out.append({"name": name, "agreed": agreed, "percent": f"{100 * agreed:.0f}", "right": right})
    return sorted(out, key=lambda row: row["agreed"])
