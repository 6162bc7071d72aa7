"""Worlds of drawn birds: classes are attribute vectors, and every picture is a pure function of its number."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.data.demo import birds, habitats
from saga_ray.data.pixels.keyed import keyed_uniforms, mix
from saga_ray.data.splits import SPLITS
from saga_ray.types import Dataset, ImageTable

FAMILY_SIZE = 4
"""Classes of a family; each differs from the first in exactly `neighbour_distance` attributes."""
_POOL_SALT = np.uint64(0x5A6A_0001)
_TIES = tuple(
    (birds.NAMES.index(tied), birds.NAMES.index(to))
    for tied, to in (
        ("leg color", "belly color"),
        ("bill color", "crown color"),
        ("tail shape", "breast pattern"),
        ("bill shape", "wing pattern"),
        ("breast color", "wing color"),
    )
)
"""Which attributes follow which others among training classes; the first `tied` of them do."""
_MAX_TRIES = 20_000
_PLACE_SPREAD = 0.2
"""How far pictures of one place lie apart, as a share of the scene."""


def is_mllm_pool(vectors: np.ndarray) -> np.ndarray:
    """Which attribute vectors may appear in the demo MLLM's training pictures: a hash gives each vector to one half.

    Worlds draw their classes from the other half only, so the MLLM never saw a class of any world.

    Args:
        vectors: (..., 10) value indices in the order of `birds.ATTRIBUTES`.

    Returns:
        (...) bool.
    """
    radix = np.concatenate([[1], np.cumprod(birds.NUM_VALUES[:-1])])
    number = (np.asarray(vectors, np.int64) * radix).sum(-1).astype(np.uint64)
    return (mix(number ^ mix(_POOL_SALT)) & np.uint64(1)).astype(bool)


@dataclass(frozen=True)
class DemoWorld:
    """All that decides a world's pictures; the same fields in `DataConfig` say what they mean."""

    world_seed: int = 0
    confound: float = 1.0
    home: str = "place"
    gap: str = "washed-out+quarter-turn"
    shift: float = 0.45
    tied: int = 5
    neighbour_distance: int = 4
    num_classes: tuple[int, int, int] = (100, 40, 80)
    num_images: tuple[int, int, int] = (30, 20, 20)


@functools.lru_cache(maxsize=8)
def class_vectors(
    world_seed: int, neighbour_distance: int, num_classes: tuple[int, int, int], tied: int
) -> tuple[np.ndarray, ...]:
    """Attribute vectors of the classes of each split, disjoint, none of them in the MLLM's pool.

    A family's members differ from its first in exactly `neighbour_distance` attributes, and any two classes of the world
    in at least as many. Among training classes some attributes follow others, so that these alone tell classes apart: what
    the labels of training classes do not ask for, and new classes need.

    Args:
        world_seed: which world.
        neighbour_distance: attributes in which neighbours differ.
        num_classes: training, validation and test classes.
        tied: how many attributes follow others among training classes.

    Returns:
        Three int64 arrays (classes, 10), families in a row.

    Raises:
        ValueError: if so many classes cannot lie so far apart.
    """
    accepted: list[np.ndarray] = []
    tries = 0
    for split, wanted in enumerate(num_classes):
        start = len(accepted)
        while len(accepted) - start < wanted:
            member = (len(accepted) - start) % FAMILY_SIZE
            first = accepted[-member] if member else None
            uniforms = keyed_uniforms((11, world_seed, split), np.array([tries]), 20)[0]
            tries += 1
            if tries > _MAX_TRIES:
                raise ValueError(
                    f"data.num_classes: {num_classes} classes that differ in data.neighbour_distance={neighbour_distance} "
                    f"attributes were not found; ask for fewer classes, a smaller distance or fewer data.tied (now {tied})"
                )
            candidate = _candidate(first, uniforms, neighbour_distance)
            if split == 0 and tied:
                candidate = _tie(candidate, tied)
                if first is not None and (candidate != first).sum() != neighbour_distance:
                    continue
            if is_mllm_pool(candidate):
                continue
            if accepted and (np.stack(accepted) != candidate).sum(1).min() < neighbour_distance:
                continue
            accepted.append(candidate)
    bounds = np.cumsum(num_classes)[:-1]
    return tuple(part.reshape(-1, len(birds.NAMES)) for part in np.split(np.array(accepted, np.int64), bounds))


def _candidate(first: np.ndarray | None, uniforms: np.ndarray, distance: int) -> np.ndarray:
    """A random vector, or a neighbour of `first` with exactly `distance` attributes changed."""
    num = len(birds.NAMES)
    if first is None:
        return (uniforms[:num] * birds.NUM_VALUES).astype(np.int64)
    changed = np.argsort(uniforms[:num], kind="stable")[:distance]
    neighbour = first.copy()
    step = 1 + (uniforms[num:] * (birds.NUM_VALUES - 1)).astype(np.int64)
    neighbour[changed] = (first + step)[changed] % birds.NUM_VALUES[changed]
    return neighbour


def _tie(vector: np.ndarray, tied: int) -> np.ndarray:
    """Let attributes follow others, value by value."""
    vector = vector.copy()
    for follower, leader in _TIES[:tied]:
        vector[follower] = vector[leader] % birds.NUM_VALUES[follower]
    return vector


def nuisance(world: DemoWorld, split: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pose, place, light and habitat of pictures; they go with the class in training as far as `confound` says.

    Every training class has a home habitat and a home light; the members of a family have different homes, as
    neighbouring species do. With `home="place"` it is one place of that habitat, as of a species photographed by few
    people. A picture shows its home with probability `confound`. Validation and test never do.

    Args:
        world: which world.
        split: train, validation or test.
        rows: (pictures,) numbers within the split.

    Returns:
        parameters (pictures, birds.NUM_PARAMETERS), habitat (pictures,).
    """
    number = SPLITS.index(split)
    uniforms = keyed_uniforms((12, world.world_seed, number), rows, birds.NUM_PARAMETERS + 3)
    parameters, habitat_u, home_u, light_u = np.split(uniforms, [birds.NUM_PARAMETERS + i for i in range(3)], axis=1)
    habitat = (habitat_u[:, 0] * len(habitats.NAMES)).astype(np.int64)
    if split == "train" and world.confound > 0:
        classes = np.asarray(rows) // world.num_images[number]
        family, member = classes // FAMILY_SIZE, classes % FAMILY_SIZE
        lives_here = home_u[:, 0] < world.confound
        habitat = np.where(lives_here, (member + family) % len(habitats.NAMES), habitat)
        if world.home == "place":
            place = keyed_uniforms((13, world.world_seed), classes, 3)
            place[:, 1:] += _PLACE_SPREAD * (parameters[:, [birds.SCENE_X, birds.SCENE_Y]] - place[:, 1:])
            columns = [birds.SCENE, birds.SCENE_X, birds.SCENE_Y]
            parameters[:, columns] = np.where(lives_here[:, None], place, parameters[:, columns])
        home_light = (member * 2 + family) % FAMILY_SIZE / FAMILY_SIZE + parameters[:, birds.LIGHT] / FAMILY_SIZE
        at_home = light_u[:, 0] < world.confound
        parameters[:, birds.LIGHT] = np.where(at_home, home_light, parameters[:, birds.LIGHT])
    return parameters, habitat


@dataclass(frozen=True)
class DemoSource:
    """Draws the pictures of one split; small and picklable (an `ImageSource`)."""

    world: DemoWorld
    split: str

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        """Draw `rows` as uint8 (N, size, size, 3); a row's picture does not depend on the others of the call."""
        rows_N = np.asarray(rows, np.int64)
        world, number = self.world, SPLITS.index(self.split)
        vectors = class_vectors(world.world_seed, world.neighbour_distance, world.num_classes, world.tied)[number]
        parameters, habitat = nuisance(world, self.split, rows_N)
        attributes_NA = vectors[rows_N // world.num_images[number]]
        return birds.draw(attributes_NA, parameters, habitat, size, gap=world.gap, shift=world.shift)


def demo_world(data: DataConfig) -> DemoWorld:
    """The world that a configuration asks for."""
    return DemoWorld(**{name: getattr(data, name) for name in DemoWorld.__dataclass_fields__})


def demo_dataset(data: DataConfig) -> Dataset:
    """The three splits of the demo world; nothing is drawn before a picture is asked for.

    Args:
        data: `world_seed`, `confound`, `home`, `gap`, `shift`, `tied`, `neighbour_distance`, `num_classes`, `num_images`.

    Returns:
        The data set, with the true attributes of every picture for evaluation only.

    Raises:
        ValueError: if so many classes cannot lie so far apart, or a split has no class or fewer than two pictures a class.
    """
    world = demo_world(data)
    for key, least in (("num_classes", 1), ("num_images", 2)):
        if min(getattr(world, key)) < least:
            raise ValueError(
                f"data.{key}: {getattr(world, key)} has a number below {least}; every split needs at least {least}"
            )
    vectors = class_vectors(world.world_seed, world.neighbour_distance, world.num_classes, world.tied)
    tables = [_table(world, split, vectors[number]) for number, split in enumerate(SPLITS)]
    described = {"world": asdict(world), "size": data.image_size, "drawing": birds.DRAWING_VERSION}
    described["vectors"] = [part.tolist() for part in vectors]
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    return Dataset(
        "demo",
        *tables,
        fingerprint=fingerprint,
        attribute_names=birds.NAMES,
        attribute_values=tuple(birds.ATTRIBUTES.values()),
    )


def _table(world: DemoWorld, split: str, vectors: np.ndarray) -> ImageTable:
    images_per_class = world.num_images[SPLITS.index(split)]
    labels_N = np.repeat(np.arange(len(vectors), dtype=np.int64), images_per_class)
    prefix = f"demo-w{world.world_seed}-{split}"
    return ImageTable(
        image_ids=tuple(f"{prefix}-{row:06d}" for row in range(len(labels_N))),
        labels_N=labels_N,
        class_names=tuple(f"{prefix}-class-{number:03d}" for number in range(len(vectors))),
        source=DemoSource(world, split),
        truth_NA=vectors[labels_N],
    )


def pool_vectors(rng: np.random.Generator, num: int, *, pool: bool = True) -> np.ndarray:
    """(num, 10) random attribute vectors of the MLLM's half (or, with `pool=False`, of the worlds' half)."""
    found = np.zeros((0, len(birds.NAMES)), np.int64)
    while len(found) < num:
        drawn = (rng.random((2 * num + 16, len(birds.NAMES))) * birds.NUM_VALUES).astype(np.int64)
        found = np.concatenate([found, drawn[is_mllm_pool(drawn) == pool]])
    return found[:num]


def any_parameters(rng: np.random.Generator, num: int) -> np.ndarray:
    """Pose, place and light at random: (num, NUM_PARAMETERS)."""
    return rng.random((num, birds.NUM_PARAMETERS))


def clean_pictures(
    rng: np.random.Generator, attributes: np.ndarray, size: int = 64, *, parameters: np.ndarray | None = None
) -> np.ndarray:
    """Pictures of given birds without any gap: (num, size, size, 3) uint8; pose at random if not given, habitat always."""
    num = len(attributes)
    parameters = any_parameters(rng, num) if parameters is None else parameters
    return birds.draw(attributes, parameters, rng.integers(0, len(habitats.NAMES), num), size)


def two_neighbours(data: DataConfig, seed: int, *, clean: bool) -> tuple[np.ndarray, list[dict[str, str]]]:
    """A picture each of two neighbouring test classes of a world, and what they show.

    Args:
        clean: Without any gap; else the first picture of each, as the world shows them.

    Returns:
        Images (2, size, size, 3) uint8, and the true value of every attribute for each.
    """
    world, rng = demo_world(data), np.random.default_rng(seed)
    vectors = class_vectors(world.world_seed, world.neighbour_distance, world.num_classes, world.tied)[2]
    first = FAMILY_SIZE * int(rng.integers(len(vectors) // FAMILY_SIZE))
    vectors_2A = vectors[first : first + 2]
    if clean:
        images = clean_pictures(rng, vectors_2A, data.image_size)
    else:
        images = DemoSource(world, "test").load([world.num_images[2] * (first + i) for i in (0, 1)], data.image_size)
    values = birds.ATTRIBUTES.items()
    return images, [{name: of[i] for (name, of), i in zip(values, vector, strict=True)} for vector in vectors_2A]


def clean_batch(rng: np.random.Generator, num: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of birds of the MLLM's half: images (num, size, size, 3) uint8, attributes (num, 10)."""
    attributes = pool_vectors(rng, num)
    return clean_pictures(rng, attributes, size), attributes
