"""Which classes train, validate and test: rules that depend on nothing but the order of the classes."""

from __future__ import annotations

SPLITS = ("train", "validation", "test")
"""The tables of every data set, in this order."""
SPLIT_WORDS = {
    **{word: "train" for word in ("train", "training")},
    **{word: "validation" for word in ("validation", "valid", "val", "dev")},
    **{word: "test" for word in ("test", "testing")},
}
"""How folders, files and rows call a split, in small letters."""


def carve_validation(num_classes: int, share: float) -> tuple[list[int], list[int]]:
    """Hold back `share` of the training classes as validation classes, spread evenly over their order.

    With n classes and v = max(1, round(share * n)) of them held back, validation class j stands at position
    floor((j + 1/2) * n / v): every fifth class, beginning with the third, at share 0.2. Neighbours in the order are often
    relatives (species of a genus, models of a make), so an evenly spread choice resembles the training classes.
    At least two classes stay for training, so v is smaller for fewer than four classes.

    Returns:
        Positions of the training classes and of the validation classes, both rising.
    """
    num_held = max(0, min(max(1, round(share * num_classes)), num_classes - 2))
    # (2j + 1) n // 2v is floor((j + 1/2) n / v) in whole numbers.
    held = [(2 * j + 1) * num_classes // (2 * num_held) for j in range(num_held)]
    chosen = set(held)
    return [position for position in range(num_classes) if position not in chosen], held


def first_half(num_classes: int) -> int:
    """How many of the ordered classes train: the first half, the middle one of an odd number included."""
    return (num_classes + 1) // 2
