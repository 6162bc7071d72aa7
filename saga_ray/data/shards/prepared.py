"""Prepared data: Parquet shards of the images' own bytes, an index of where each image lies, and a manifest of checksums.

`manifest.json` is written last and says what was prepared; `index.parquet` has a line per image, in the tables' order;
`images-00000-of-00006.parquet` and so on hold the bytes as they came, not compressed again. Bytes of a value lie together in
such a file, so an image is read as one range of bytes from disk, NFS or an object store: nothing else is read, kept or
unpacked, and memory does not grow with the data. Any Parquet library reads the same files.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from saga_ray.data.files.fingerprint import Listed, dataset_fingerprint
from saga_ray.data.files.places import Place, absolute, without_password
from saga_ray.data.files.sources import StoredImages
from saga_ray.data.shards.manifest import ShardManifest, damaged_shard, read_index, read_manifest
from saga_ray.data.splits import SPLITS
from saga_ray.types import Dataset, ImageTable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import NativeFile

    from saga_ray.config import RunConfig

_OPEN_FILES = 256


@dataclass(frozen=True, eq=False)
class ShardSource(StoredImages):
    """Images inside shards (a `FileSource`); row i of the table is `length_N[i]` bytes at `offset_N[i]` of a shard.

    Small and picklable: 24 bytes and a name per image. Files are opened where they are read and stay open there.
    """

    root: str
    shards: tuple[str, ...]
    shard_N: np.ndarray
    offset_N: np.ndarray
    length_N: np.ndarray
    crc_N: np.ndarray
    """CRC-32 of the bytes, checked at every read."""
    names: tuple[str, ...]
    """Image ids, for messages."""
    cut_bottom: int = 0
    draft: bool = False

    def read(self, row: int) -> bytes:
        """The file's bytes, as they were before they were prepared.

        Raises:
            ValueError: naming the shard, if it is missing or holds other bytes.
        """
        shard = self.shards[self.shard_N[row]]
        length = int(self.length_N[row])
        try:
            content = _opened(self.root, shard).read_at(length, int(self.offset_N[row]))
        except OSError as error:
            raise damaged_shard(without_password(self.root), shard, str(error)) from None
        if len(content) != length or zlib.crc32(content) != int(self.crc_N[row]):
            raise damaged_shard(
                without_password(self.root), shard, f"image {self.names[row]} has other bytes than when it was prepared"
            )
        return content

    def place_of(self, row: int) -> str:
        """The shard that holds an image."""
        return self.shards[self.shard_N[row]]


@lru_cache(maxsize=_OPEN_FILES)
def _opened(root: str, shard: str) -> NativeFile:
    return Place.open(root).open_file(shard)


def prepared_dataset(config: RunConfig) -> Dataset:
    """The data set that was prepared: tables, fingerprint and pixels equal those of the files it was made from.

    Raises:
        ValueError: for another data set than asked for, counts that differ from the owner's (`data.verify_counts`), a split
            made with another `data.validation_share`, and shards that are missing or damaged.
    """
    assert config.data.root is not None
    _opened.cache_clear()  # the folder may have been written anew since this process read it
    place = Place.open(config.data.root)
    manifest = read_manifest(place)
    _check_wanted(config, manifest, place)
    index = read_index(place, manifest)
    sizes = place.list()
    for shard in manifest.shards:
        found = sizes.get(shard.file)
        if found != shard.bytes:
            why = "it is missing" if found is None else f"it has {found:,} bytes instead of {shard.bytes:,}"
            raise damaged_shard(place.shown, shard.file, why)
    listed, tables = tables_of(index, manifest, absolute(config.data.root))
    return Dataset(
        manifest.dataset,
        **tables,
        fingerprint=dataset_fingerprint(listed, config.data.image_size),
        partial=manifest.partial,
        attribute_names=tuple(manifest.attribute_names),
        attribute_values=tuple(map(tuple, manifest.attribute_values)),
    )


def _check_wanted(config: RunConfig, manifest: ShardManifest, place: Place) -> None:
    name = manifest.dataset
    if name != config.dataset:
        raise ValueError(
            f"data.root: {place.shown} holds the shards of '{name}', not of '{config.dataset}'; name the data set '{name}', or another folder"
        )
    if manifest.partial and config.data.verify_counts:
        raise ValueError(
            f"data.root: {name}: the shards in {place.shown} were prepared from files whose counts differ from the published ones; "
            f"prepare a complete copy, or go on with --set data.verify_counts=false (rows are then marked partial)"
        )
    share = manifest.validation_share
    if share != config.data.validation_share:
        raise ValueError(
            f"data.validation_share: {config.data.validation_share}, but {place.shown} was split with {share}; set it to {share}, "
            f"or prepare the files again with --set data.validation_share={config.data.validation_share}"
        )


def tables_of(
    index: pa.Table, manifest: ShardManifest, root: str
) -> tuple[dict[str, ImageTable], dict[str, ImageTable]]:
    """Tables by split for a fingerprint, which know sizes and digests, and those that load images."""
    pairs = {split: _table(index, split, manifest, root) for split in SPLITS}
    return {split: pair[0] for split, pair in pairs.items()}, {split: pair[1] for split, pair in pairs.items()}


def _table(index: pa.Table, split: str, manifest: ShardManifest, root: str) -> tuple[ImageTable, ImageTable]:
    import pyarrow.compute as pc

    rows = index.filter(pc.equal(index["split"], split))
    image_ids = tuple(rows["image_id"].to_pylist())
    columns = {name: rows[name].to_numpy() for name in ("label", "shard", "offset", "length", "crc32")}
    width = len(manifest.attribute_names)
    attributes = rows["attributes"].to_pylist() if "attributes" in rows.column_names else None
    source = ShardSource(
        root,
        tuple(shard.file for shard in manifest.shards),
        columns["shard"].astype(np.int32),
        columns["offset"].astype(np.int64),
        columns["length"].astype(np.int64),
        columns["crc32"].astype(np.uint32),
        image_ids,
        manifest.cut_bottom,
    )
    table = ImageTable(
        image_ids=image_ids,
        labels_N=columns["label"].astype(np.int64),
        class_names=tuple(manifest.classes[split]),
        source=source,
        truth_NA=None if attributes is None else np.array(attributes, np.int64).reshape(len(image_ids), width),
    )
    known = Listed(source.length_N, rows["sha256"].to_pylist(), source.cut_bottom)
    return ImageTable(image_ids, table.labels_N, table.class_names, known), table
