"""Data sets: files or drawings to tables of images, the pair plan, and decoded micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saga_ray.config import RunConfig
    from saga_ray.types import Dataset


def load_dataset(config: RunConfig) -> Dataset:
    """The data set that a run is about; reads listings, decodes no image.

    Raises:
        ValueError: one sentence, naming the key or file, for data that is missing, incomplete or cannot be split.
    """
    dataset = _read(config)
    if config.data.decode == "draft":
        from saga_ray.data.pixels.draft import drafted

        dataset = drafted(dataset)
    if config.evaluation.split == "validation" and len(dataset.validation) == 0:
        raise ValueError(
            f"evaluation.split: '{dataset.name}' has too few training classes to hold any back for validation; "
            f"add classes, or set evaluation.split=test"
        )
    return dataset


def _read(config: RunConfig) -> Dataset:
    # Imported here: a run needs one reader, and `import saga_ray.data` must stay quick.
    if config.dataset != "demo":
        from saga_ray.data.shards.manifest import is_prepared
        from saga_ray.data.shards.prepared import prepared_dataset

        if is_prepared(config.data.root):
            return prepared_dataset(config)
    match config.dataset:
        case "demo":
            from saga_ray.data.demo import demo_dataset

            return demo_dataset(config.data)
        case "folder":
            from saga_ray.data.files.folder import folder_dataset
            from saga_ray.data.files.parquet import holds_parquet, parquet_dataset

            if holds_parquet(config.data.root):
                return parquet_dataset(config.data)
            return folder_dataset(config.data)
        case "cub":
            from saga_ray.data.benchmarks.cub import cub_dataset

            return cub_dataset(config.data)
        case "cars":
            from saga_ray.data.benchmarks.cars import cars_dataset

            return cars_dataset(config.data)
        case "aircraft":
            from saga_ray.data.benchmarks.aircraft import aircraft_dataset

            return aircraft_dataset(config.data)
        case "inat-aves":
            from saga_ray.data.benchmarks.inat import inat_dataset

            return inat_dataset(config.data)
    raise AssertionError(config.dataset)
