"""Confusable classes by kinship: from the names of iNaturalist's folders, or from a tree that the user writes down."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.configure import file_digest
from saga_ray.yaml_text import load_yaml

_INAT = re.compile(r"\d{5}_(\w+_\w+_\w+_\w+_\w+_\w+)_[^_]+")


class TaxonomyNeighbours:
    """Neighbours by kinship: classes that share their genus before those that share their family, and so on (`ClassNeighbours`)."""

    def __init__(self, lineages: Sequence[Sequence[str]]) -> None:
        """Take the groups of every class, widest first, as `("Accipitriformes", "Accipitridae", "Accipiter")`."""
        depth = max(map(len, lineages))
        numbers: dict[tuple[str, ...], int] = {}
        self._node_LC = np.full((depth, len(lineages)), -1, dtype=np.int64)
        for label, lineage in enumerate(lineages):
            for level in range(len(lineage)):
                node = tuple(lineage[: level + 1])
                self._node_LC[level, label] = numbers.setdefault(node, len(numbers))

    def groups(self, order: np.ndarray, num_groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """See `ClassNeighbours`; equally close relatives are taken in their order."""
        free = np.ones(len(order), dtype=bool)
        # Members of every node in order; what was taken meanwhile is thrown away when it comes up.
        queues: dict[int, deque[int]] = defaultdict(deque)
        for nodes_C in self._node_LC:
            for place, node in enumerate(nodes_C[order].tolist()):
                if node >= 0:
                    queues[node].append(place)
        everybody = deque(range(len(order)))
        groups_GW = np.empty((num_groups, width), dtype=np.int64)
        for group in range(num_groups):
            places = list(_take(everybody, free, 1))
            nodes_L = self._node_LC[:, order[places[0]]]
            for queue in [*(queues[node] for node in reversed(nodes_L.tolist()) if node >= 0), everybody]:
                places += _take(queue, free, width - len(places))
            groups_GW[group] = order[places]
        return groups_GW, order[free]


def _take(queue: deque[int], free: np.ndarray, num: int) -> Iterator[int]:
    while num and queue:
        place = queue.popleft()
        if free[place]:
            free[place] = False
            num -= 1
            yield place


def relatives(data: DataConfig, class_names: Sequence[str]) -> TaxonomyNeighbours | None:
    """What the plan's hard shards go by, if `data.hard_from` says taxonomy.

    Raises:
        ValueError: as `lineages_of`.
    """
    if data.hard_from != "taxonomy" or data.hard_share == 0:
        return None
    return TaxonomyNeighbours(lineages_of(class_names, data.taxonomy, data.taxonomy_digest))


def lineages_of(
    class_names: Sequence[str], path: str | Path | None, digest: str | None = None
) -> list[tuple[str, ...]]:
    """The groups that every class belongs to, widest first.

    Args:
        path: YAML file of nested mappings whose leaves are lists of class names (`data.taxonomy`); None reads names of
            the form `NNNNN_Kingdom_Phylum_Class_Order_Family_Genus_species`.
        digest: as `data.taxonomy_digest`: the content that is meant.

    Raises:
        ValueError: naming classes that have no place, or the key of a tree that cannot be read.
    """
    if path is None:
        found = [_INAT.fullmatch(name) for name in class_names]
        missing = [name for name, match in zip(class_names, found, strict=True) if match is None]
        if missing:
            raise ValueError(
                f"data.hard_from: taxonomy needs names such as 04464_Animalia_..._Family_Genus_species, and {len(missing)} of "
                f"{len(class_names)} classes are named otherwise ({_some(missing)}); set data.taxonomy to a YAML file, or "
                f"data.hard_from=embeddings"
            )
        return [tuple(match.group(1).split("_")) for match in found if match]
    path = Path(path).expanduser()
    groups = load_yaml(path)
    if digest is not None and file_digest(path.read_bytes()) != digest:
        raise ValueError(
            f"data.taxonomy: {path} is not the file that the run began with (its digest is not {digest}); put that file back, or "
            f"begin another run"
        )
    lineages = dict(_leaves(groups, (), path))
    missing = [name for name in class_names if name not in lineages]
    if missing:
        raise ValueError(
            f"data.taxonomy: {path} has no place for {len(missing)} of {len(class_names)} training classes ({_some(missing)}); "
            f"add them to its lists"
        )
    return [lineages[name] for name in class_names]


def _leaves(
    branch: Mapping[str, Any], above: tuple[str, ...], path: str | Path
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, inner in branch.items():
        here = (*above, str(key))
        if isinstance(inner, Mapping):
            yield from _leaves(inner, here, path)
        elif isinstance(inner, list) and not any(isinstance(name, (list, dict)) for name in inner):
            yield from ((str(name), here) for name in inner)
        else:
            raise ValueError(
                f"data.taxonomy: {path}: '{' / '.join(here)}' holds {type(inner).__name__} where a list of class names or a "
                f"mapping is expected"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
