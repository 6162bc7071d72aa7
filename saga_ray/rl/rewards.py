"""What an answer earns."""

from __future__ import annotations

from torch import Tensor


def verdict_rewards(verdicts_PG: Tensor, same_class_P: Tensor) -> Tensor:
    """1 for a verdict that is right, else 0 (SAGA, arXiv 2606.15134, section 3.2).

    Args:
        verdicts_PG: int, 1 same, 0 different, -1 none (malformed or cut): none is never right.
        same_class_P: bool.

    Returns:
        (pairs, completions) float64.
    """
    return (verdicts_PG == same_class_P[:, None].to(verdicts_PG.dtype)).double()
