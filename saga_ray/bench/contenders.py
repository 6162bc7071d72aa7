"""Ways to get the same micro-batches: torch's DataLoader, and the stream of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from saga_ray.bench.clock import Contender, Material
from saga_ray.data.pixels.images import augment, augmentation_keys
from saga_ray.data.planning.stream import decode_plan


class MicroBatches(Dataset):
    """An item is a whole micro-batch, decoded as a run decodes it."""

    def __init__(self, material: Material, num: int) -> None:
        self._material, self._num, self._planner = material, num, material.planner()

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        m = self._material
        batch = decode_plan(m.table.source, m.table.labels_N, self._planner.plan(index), m.data, m.seed)
        return torch.from_numpy(batch.images_NHWC), torch.from_numpy(batch.labels_N)


class Images(Dataset):
    """An item is one image, asked for as (micro-batch, row); the loader's own collation makes the batch."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._shift = round(material.data.shift_pixels * material.data.image_size)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int]:
        m, (micro_batch, row) = self._material, item
        image_NHWC = m.table.source.load([row], m.data.image_size)
        keys_N = augmentation_keys(m.seed, micro_batch, np.array([row]))
        image_HWC = augment(image_NHWC, keys_N, m.data.flip, self._shift)[0]
        return torch.from_numpy(image_HWC), int(m.table.labels_N[row])


@dataclass(frozen=True)
class Setting:
    """How a DataLoader is set up; one persistent worker per core in all of them."""

    item: str
    """`micro-batch` or `image`."""
    prefetch: int
    """Items (micro-batches) that each worker may be ahead."""


SETTINGS = (Setting("micro-batch", 2), Setting("micro-batch", 4), Setting("image", 2))


def data_loader(material: Material, setting: Setting, num_workers: int, furthest: int) -> Contender:
    """A DataLoader over micro-batches 0 .. furthest - 1, whose workers start with the first use and stay."""
    shared: dict[str, Any] = {
        "num_workers": num_workers,
        "persistent_workers": True,
        "prefetch_factor": setting.prefetch,
        # As anybody has it who starts the loader first; Ray, which has threads, is started after all loaders.
        "multiprocessing_context": "fork",
    }
    if setting.item == "micro-batch":
        loader = DataLoader(MicroBatches(material, furthest), batch_size=None, **shared)
    else:
        planner = material.planner()
        batches = [[(index, row) for row in planner.plan(index).rows] for index in range(furthest)]
        loader = DataLoader(Images(material), batch_sampler=batches, **shared)
    return lambda num: loader


def ray_stream(material: Material, num_cores: int) -> Contender:
    """Micro-batches as a training worker on Ray gets them; a connection to Ray is needed."""
    from saga_ray.on_ray.data import Decoding, ray_batches

    m = material
    batches = ray_batches(m.table, m.data, m.seed, 0, 1, Decoding(cpus_per_task=0.25, max_tasks=num_cores))

    def stream(num: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # As in a run, the plan goes on behind what is taken.
        with contextlib.closing(batches(0, num + 64, m.planner())) as found:
            for batch in found:
                yield torch.from_numpy(batch.images_NHWC), torch.from_numpy(batch.labels_N)

    return stream
