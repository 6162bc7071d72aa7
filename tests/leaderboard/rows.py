"""Results and boards with known numbers, for the tests of this folder."""

from __future__ import annotations

import numpy as np

from saga_ray.leaderboard.result import PerClass, Result

HOSTILE = "<script>alert('x')</script>\"&|`=1+1\n\x1b[31m\u202e"
"""A name as an attacker would choose it: markup, quotes, a table's separator, a line break, terminal and text control."""


def make_result(hits_C: list[float], num_queries: int = 10, **changes: object) -> Result:
    """A result whose classes have `num_queries` queries each and `hits_C` hits."""
    num_classes = len(hits_C)
    mean = sum(hits_C) / (num_classes * num_queries)
    values = {
        "dataset": "demo", "fingerprint": "f" * 16, "split": "test", "protocol": "zero-shot-v1", "backbone": "tiny",
        "pretraining": "captions", "frozen": False, "dim": 8, "label": "saga", "config_hash": "c0", "seed": 0,
        "code_version": "0.1.0", "num_images": num_classes * num_queries, "created": "2026-01-01T00:00:00Z",
        "scores": {"recall@1": mean, "recall@2": 1.0, "recall@4": 1.0, "recall@8": 1.0, "map@r": mean / 2, "nmi": 0.5},
        "per_class": PerClass(
            names=tuple(f"class {number}" for number in range(num_classes)),
            num_queries=(num_queries,) * num_classes,
            sums={"recall@1": tuple(hits_C), "map@r": tuple(hit / 2 for hit in hits_C)},
        ),
    } | changes  # fmt: skip
    return Result(**({"method": str(values["label"]).split(" ")[0]} | values))


def study(num_classes: int = 30, seed: int = 0) -> list[Result]:
    """Three methods, two of them with five seeds, whose classes differ in difficulty."""
    rng = np.random.default_rng(seed)
    difficulty_C = rng.normal(0, 0.15, num_classes)
    results = []
    for label, level, seeds in (("pretrained", 0.4, 1), ("potential-field", 0.55, 5), ("saga", 0.65, 5)):
        for number in range(seeds):
            share_C = np.clip(level + difficulty_C, 0.05, 0.95)
            hits_C = rng.binomial(10, share_C).astype(float).tolist()
            results.append(make_result(hits_C, label=label, seed=number, frozen=label == "pretrained"))
    return results
