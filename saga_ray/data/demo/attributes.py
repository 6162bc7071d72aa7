"""The words of a drawn bird: ten attributes and their values."""

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "crown color": ("black", "white", "red", "yellow", "blue"),
    "breast color": ("white", "yellow", "red", "blue", "brown"),
    "belly color": ("white", "yellow", "red", "gray", "black"),
    "wing color": ("brown", "blue", "green", "gray", "black"),
    "breast pattern": ("solid", "spotted", "striped", "barred"),
    "wing pattern": ("solid", "spotted", "barred", "edged"),
    "tail shape": ("forked", "fan", "pointed", "square"),
    "bill shape": ("cone", "dagger", "curved", "spatulate"),
    "bill color": ("black", "yellow", "red", "blue"),
    "leg color": ("black", "yellow", "red", "blue"),
}
"""The ten attributes in the order of the vector's columns; names from the paper's 28 groups for birds."""

NAMES = tuple(ATTRIBUTES)
NUM_VALUES = np.array([len(values) for values in ATTRIBUTES.values()])
