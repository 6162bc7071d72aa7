"""The pair plan: which images form a micro-batch and which pairs the MLLM is shown, as a pure function of (seed, index, snapshot).

Classes come in rounds. A round of C classes has C // classes_per_batch micro-batches and no class twice in it; the
C mod classes_per_batch classes left over rest for that round. Who rests walks around a fixed circle of the classes, so after any number
of whole rounds all classes were seen equally often to within one (inside a round: to within two). Images of a class
come from a stream of permutations of its images, so at any moment those of one class were seen equally often to
within one. Classes of unequal size give their images unequally often: micro-batches are balanced by class.
"""

from __future__ import annotations

import itertools

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.data.planning.mining import ClassNeighbours, neighbours_from
from saga_ray.types import ImagePair, PairPlan

# First part of every key below, so that no two draws share a stream.
_CIRCLE, _ROUND, _IMAGES, _PAIRS = range(4)


class PairPlanner:
    """Plans of one training split; cheap to copy to any worker, equal plans wherever it is asked.

    Example: `PairPlanner(table.labels_N, config.data, seed=0, class_centroids=None).plan(7, rank=1, world_size=2)`.
    """

    def __init__(
        self,
        labels_N: np.ndarray,
        data: DataConfig,
        seed: int,
        class_centroids: np.ndarray | None = None,
        neighbours: ClassNeighbours | None = None,
    ) -> None:
        """Prepare the plan of a training split.

        Args:
            labels_N: class of every training image, 0 .. C - 1, each with two images or more.
            class_centroids: mining snapshot, (C, E) mean embedding of every class; None makes every shard random.
            neighbours: another opinion on which classes are confusable, such as a taxonomy's, in place of a snapshot.

        Raises:
            ValueError: naming the key, for fewer classes than a micro-batch wants or a class with one image.
        """
        labels_N = np.asarray(labels_N, dtype=np.int64)
        counts_C = np.bincount(labels_N)
        self.num_classes = len(counts_C)
        if self.num_classes < data.classes_per_batch:
            raise ValueError(_too_few_classes(self.num_classes, data))
        if counts_C.min() < 2:
            label = int(counts_C.argmin())
            raise ValueError(
                f"data.root: training class number {label} has {counts_C[label]} image(s), and a pair of one class needs two; "
                f"add images to it or remove it"
            )
        self._order_N = np.argsort(labels_N, kind="stable")
        self._start_C = np.cumsum(counts_C) - counts_C
        self._count_C = counts_C
        self._data = data
        self._seed = seed
        assert class_centroids is None or (neighbours is None and len(class_centroids) == self.num_classes)
        self._centroids_CE, self._neighbours = class_centroids, neighbours
        circle_C = self._rng(_CIRCLE).permutation(self.num_classes)
        self._place_on_circle_C = np.argsort(circle_C)
        self._round: tuple[int, np.ndarray] | None = None

    @property
    def batches_per_round(self) -> int:
        """Micro-batches in which every class that does not rest is seen once."""
        return self.num_classes // self._data.classes_per_batch

    def plan(self, index: int, rank: int = 0, world_size: int = 1) -> PairPlan:
        """Micro-batch `index` as rank `rank` of `world_size` sees it.

        A rank owns whole shards, in order: the rows of all ranks, one after the other, are those of one rank. Rows are
        ordered by shard, class and image; positions in pairs count within the rank's rows; `ImagePair.number` counts
        over all shards, pair i of shard s being i * num_shards + s.
        """
        num_shards = self._data.num_shards
        assert index >= 0 and 0 <= rank < world_size and num_shards % world_size == 0
        round_number, place = divmod(index, self.batches_per_round)
        shards_SC = self._shards_of_round(round_number)[place * num_shards : (place + 1) * num_shards]
        shards_per_rank = num_shards // world_size
        rows: list[int] = []
        pairs: list[ImagePair] = []
        for shard in range(rank * shards_per_rank, (rank + 1) * shards_per_rank):
            shard_rows_CK = np.stack([self._images(label, round_number) for label in shards_SC[shard]])
            pairs += self._pairs(index, shard, shard_rows_CK, offset=len(rows))
            rows += shard_rows_CK.ravel().tolist()
        pairs.sort(key=lambda pair: pair.number)
        return PairPlan(index=index, rows=tuple(rows), pairs=tuple(pairs))

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key])

    def _shards_of_round(self, round_number: int) -> np.ndarray:
        """Classes of every shard of a round: (shards, classes of a shard)."""
        if self._round is None or self._round[0] != round_number:
            self._round = (round_number, self._draw_round(round_number))
        return self._round[1]

    def _draw_round(self, round_number: int) -> np.ndarray:
        data = self._data
        num_shards = self.batches_per_round * data.num_shards
        width = data.classes_per_batch // data.num_shards
        num_resting = self.num_classes % data.classes_per_batch
        resting_C = (self._place_on_circle_C - round_number * num_resting) % self.num_classes < num_resting
        order = self._rng(_ROUND, round_number).permutation(self.num_classes)
        order = order[~resting_C[order]]
        neighbours = self._nearby()
        hard_share = 0.0 if neighbours is None else data.hard_share
        # Shard k of the run is hard where k * hard_share passes a whole number: hard ones are spread evenly.
        steps = np.floor(np.arange(num_shards + 1) * hard_share + 1e-9)
        is_hard = np.diff(steps) > 0
        shards_SC = np.empty((num_shards, width), dtype=np.int64)
        if neighbours is not None:
            # Hard shards choose first, while all neighbours are still to be had.
            shards_SC[is_hard], order = neighbours.groups(order, int(is_hard.sum()), width)
        shards_SC[~is_hard] = order.reshape(-1, width)
        return shards_SC

    def _nearby(self) -> ClassNeighbours | None:
        # Not before a round is drawn: whoever only hands the planner on needs none.
        if self._neighbours is None and self._centroids_CE is not None:
            self._neighbours = neighbours_from(self._centroids_CE)
        return self._neighbours

    def __getstate__(self) -> dict:
        """What travels: not what can be had again from the snapshot."""
        state = dict(self.__dict__)
        if self._centroids_CE is not None:
            state["_neighbours"] = None
        return state

    def _images(self, label: int, round_number: int) -> np.ndarray:
        """The images of class `label` in a round, images_per_class rows.

        Classes with fewer images than images_per_class give all of them and begin again.
        """
        first = self._start_C[label]
        rows = self._order_N[first : first + self._count_C[label]]
        rests = self.num_classes % self._data.classes_per_batch
        # How often this place of the circle lies in the first round_number * rests steps around it.
        rested = (round_number * rests - self._place_on_circle_C[label] + self.num_classes - 1) // self.num_classes
        start = int(round_number - rested) * self._data.images_per_class
        return rows[self._image_stream(label, start)]

    def _image_stream(self, label: int, start: int) -> np.ndarray:
        """Elements start .. start + K - 1 of the class's stream of permutations of its n images, none twice among them if n >= K."""
        n, k = int(self._count_C[label]), self._data.images_per_class
        if n < 2 * k - 1:
            # Too few to choose a fresh order that avoids the last images of the one before: one order, around and around.
            return self._rng(_IMAGES, label).permutation(n)[np.arange(start, start + k) % n]
        number, place = divmod(start, n)
        order = self._rng(_IMAGES, label, number).permutation(n)
        num_here = min(k, n - place)
        if num_here == k:
            return self._after_tail(label, number, order)[place : place + k]
        tail = order[place:]
        following = self._rng(_IMAGES, label, number + 1).permutation(n)
        return np.concatenate((tail, following[~np.isin(following, tail)][: k - num_here]))

    def _after_tail(self, label: int, number: int, order: np.ndarray) -> np.ndarray:
        """Permutation `number` as it is used: the K - t images that completed the last group of the one before come first.

        Only its first K places change, so with n >= 2 K - 1 its own tail of at most K - 1 is as drawn.
        """
        n, k = len(order), self._data.images_per_class
        num_tail = number * n % k
        if num_tail == 0:
            return order
        tail = self._rng(_IMAGES, label, number - 1).permutation(n)[n - num_tail :]
        allowed = np.flatnonzero(~np.isin(order, tail))[: k - num_tail]
        return np.concatenate((order[allowed], np.delete(order, allowed)))

    def _pairs(self, index: int, shard: int, rows_CK: np.ndarray, offset: int) -> list[ImagePair]:
        """Pairs of one shard, same and different in turn, spread over its classes; none twice while there are others."""
        data = self._data
        num_pairs = data.pairs_per_batch // data.num_shards
        # An odd number of pairs would always favour `same`: then shards and micro-batches take turns to begin.
        first_is_different = (num_pairs % 2) * (shard + index) % 2
        rng = self._rng(_PAIRS, index, shard)
        same = _same_class_pairs(rows_CK, rng)
        different = _different_class_pairs(rows_CK, rng)
        pairs = []
        for i in range(num_pairs):
            is_same = (i + first_is_different) % 2 == 0
            first, second = next(same if is_same else different)
            if rng.random() < 0.5:
                first, second = second, first
            number = i * data.num_shards + shard
            pairs.append(ImagePair(offset + first, offset + second, is_same, number))
        return pairs


def _same_class_pairs(rows_CK: np.ndarray, rng: np.random.Generator):
    """Positions of two different images of one class, the classes in turn, without end."""
    num_classes, num_images = rows_CK.shape
    classes = rng.permutation(num_classes)
    pairs_of_class = []
    for label in classes:
        pairs = [
            (label * num_images + a, label * num_images + b)
            for a, b in itertools.combinations(range(num_images), 2)
            if rows_CK[label, a] != rows_CK[label, b]
        ]
        pairs_of_class.append([pairs[i] for i in rng.permutation(len(pairs))])
    for turn in itertools.count():
        for pairs in pairs_of_class:
            first, second = pairs[turn % len(pairs)]
            yield int(first), int(second)


def _different_class_pairs(rows_CK: np.ndarray, rng: np.random.Generator):
    """Positions of two images of two classes, the pairs of classes in turn, without end."""
    num_classes, num_images = rows_CK.shape
    class_pairs = list(itertools.combinations(range(num_classes), 2))
    class_pairs = [class_pairs[i] for i in rng.permutation(len(class_pairs))]
    image_pairs = [rng.permutation(num_images**2) for _ in class_pairs]
    for turn in itertools.count():
        for (a, b), images in zip(class_pairs, image_pairs, strict=True):
            image_a, image_b = divmod(int(images[turn % len(images)]), num_images)
            yield a * num_images + image_a, b * num_images + image_b


def _too_few_classes(num_classes: int, data: DataConfig) -> str:
    fits = [s for s in range(1, data.num_shards + 1) if data.pairs_per_batch % s == 0 and num_classes // s >= 2]
    start = (
        f"data.classes_per_batch: {data.classes_per_batch} is more than the {num_classes} training classes there are"
    )
    if not fits:
        return f"{start}; at least 2 training classes are needed"
    shards = max(fits)
    advice = f"set data.classes_per_batch={num_classes // shards * shards}"
    return f"{start}; {advice}" + (f" and data.num_shards={shards}" if shards != data.num_shards else "")
