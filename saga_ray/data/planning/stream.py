"""From plan to pixels: decoded micro-batches in order, in this process; Ray runs the same `decode_plan` elsewhere."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator

import numpy as np

from saga_ray.config import DataConfig
from saga_ray.data.pixels.crop import cropped
from saga_ray.data.pixels.images import BrokenImageError, augment, augmentation_keys
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.types import ImageSource, ImageTable, MicroBatch, PairPlan

logger = logging.getLogger(__name__)


def decode_plan(
    table_source: ImageSource, labels: np.ndarray, plan: PairPlan, data: DataConfig, seed: int
) -> MicroBatch:
    """Decode and augment one row of the plan; a pure function of its arguments and the files.

    A broken image is replaced by the next image of its class, in the table's order, that is not in the micro-batch
    already and can be decoded (one from the micro-batch if there is no other); `MicroBatch.broken` names it.

    Args:
        labels: class of every training image, (images of the table,).

    Raises:
        BrokenImageError: if no image of a class can be decoded.
    """
    rows_N, broken = np.array(plan.rows, dtype=np.int64), []
    try:
        images_NHWC = table_source.load(plan.rows, data.image_size)
    except BrokenImageError:
        loaded = []
        for place, row in enumerate(plan.rows):
            row, image_HWC, errors = _load_or_replace(table_source, labels, row, rows_N, data.image_size)
            rows_N[place] = row
            loaded.append(image_HWC)
            broken += [error.path for error in errors]
        images_NHWC = np.stack(loaded)
    # Keyed by the planned row, so that a repaired file changes no other image.
    keys_N = augmentation_keys(seed, plan.index, np.array(plan.rows))
    shift_pixels = round(data.shift_pixels * data.image_size)
    return MicroBatch(
        index=plan.index,
        images_NHWC=augment(cropped(images_NHWC, keys_N, data.crop_area), keys_N, data.flip, shift_pixels),
        labels_N=np.asarray(labels)[rows_N],
        rows_N=rows_N,
        pairs=plan.pairs,
        broken=tuple(dict.fromkeys(broken)),
    )


def _load_or_replace(
    source: ImageSource, labels: np.ndarray, row: int, taken_N: np.ndarray, size: int
) -> tuple[int, np.ndarray, list[BrokenImageError]]:
    """The row itself, or the first of its replacements that can be decoded, and the errors on the way."""
    of_class = np.flatnonzero(np.asarray(labels) == labels[row])
    place = int(np.searchsorted(of_class, row))
    others = [int(other) for other in np.roll(of_class, -place)[1:]]
    taken = set(taken_N.tolist())
    candidates = [row, *(o for o in others if o not in taken), *(o for o in others if o in taken)]
    errors: list[BrokenImageError] = []
    for candidate in candidates:
        try:
            return candidate, source.load([candidate], size)[0], errors
        except BrokenImageError as error:
            errors.append(error)
    raise errors[0]


class BrokenImages:
    """Counts the distinct broken training images of a stream, logs each once, and ends the run above the allowed share."""

    def __init__(self, num_images: int, max_share: float) -> None:
        """Watch a training table of `num_images` images; `max_share` is `data.max_broken_share`."""
        self._num_images, self._max_share = num_images, max_share
        self._paths: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, batch: MicroBatch) -> None:
        """Take a batch's broken images into account.

        Raises:
            ValueError: naming the files, once their share of the training images is above the allowed one.
        """
        for path in batch.broken:
            if path not in self._paths:
                self._paths[path] = None
                logger.warning("%s: cannot be read as an image; another image of its class takes its place", path)
        share = len(self._paths) / self._num_images
        if batch.broken and share > self._max_share:
            shown = ", ".join(list(self._paths)[:10]) + (", ..." if len(self._paths) > 10 else "")
            raise ValueError(
                f"data.max_broken_share: {len(self._paths)} of {self._num_images} training images ({share:.2%}) cannot be read, "
                f"more than the allowed {self._max_share:.2%}: {shown}; replace or remove them, or raise data.max_broken_share"
            )


def micro_batches(
    table: ImageTable,
    planner: PairPlanner,
    data: DataConfig,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    read_ahead: int = 2,
) -> Iterator[MicroBatch]:
    """Micro-batches start .. stop - 1 of one rank, in order, decoded by a thread that is at most `read_ahead` of them ahead.

    The thread ends when the consumer does: at the end, after an error, or when the iterator is closed or dropped.

    Raises:
        ValueError: for a class without a readable image, or too many broken images (`data.max_broken_share`).
    """
    watch = BrokenImages(len(table), data.max_broken_share)
    # The thread holds one batch more while it waits to hand it over.
    ready: queue.Queue[MicroBatch | BaseException] = queue.Queue(maxsize=max(1, read_ahead - 1))
    stopped = threading.Event()

    def hand_over(item: MicroBatch | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for index in range(start, stop):
                if stopped.is_set():
                    return
                plan = planner.plan(index, rank, world_size)
                hand_over(decode_plan(table.source, table.labels_N, plan, data, seed))
        except BaseException as error:  # raised again where the consumer is
            hand_over(error)

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        for index in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            assert item.index == index
            watch.add(item)
            yield item
    finally:
        stopped.set()
        thread.join()
