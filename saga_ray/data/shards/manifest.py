"""What a folder of shards says of itself: `manifest.json`, written last, and the index that it names."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from saga_ray.data.files.places import Place
from saga_ray.data.splits import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "saga-ray shards 1"
MANIFEST, INDEX, UNFINISHED = "manifest.json", "index.parquet", "unfinished.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Begun(BaseModel):
    """What was to be written, known from the beginning (`unfinished.json`)."""

    model_config = ConfigDict(frozen=True)

    format: str
    dataset: str
    fingerprint: str
    validation_share: float
    num_shards: int = Field(ge=1)


class Shard(BaseModel):
    """One file of images."""

    model_config = ConfigDict(frozen=True)

    file: str = Field(pattern=r"^images-[0-9]{5,}-of-[0-9]{5,}\.parquet$")
    images: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Sha256


class ShardManifest(BaseModel):
    """What was prepared; keys of later versions are passed over."""

    model_config = ConfigDict(frozen=True)

    format: str
    dataset: str
    fingerprint: str
    validation_share: float
    partial: bool
    preprocessing: str
    cut_bottom: NonNegativeInt
    num_images: dict[str, NonNegativeInt]
    classes: dict[str, list[str]]
    attribute_names: list[str]
    attribute_values: list[list[str]]
    index_sha256: Sha256
    shards: list[Shard]

    @model_validator(mode="after")
    def _has_all_splits(self) -> ShardManifest:
        missing = [split for split in SPLITS if split not in self.classes]
        if missing:
            raise ValueError(f"no classes of {missing[0]}")
        return self


def is_prepared(root: str | None) -> bool:
    """True for a folder that `saga-ray data prepare` wrote, or began to write.

    Raises:
        ValueError: for an address that cannot be opened.
    """
    if root is None:
        return False
    place = Place.open(root)
    return (place.has(MANIFEST) and place.has(INDEX)) or place.has(UNFINISHED)


def read_manifest(place: Place) -> ShardManifest:
    """What was prepared.

    Raises:
        ValueError: for a preparation that was not finished, or a manifest that is damaged or of another version.
    """
    if not place.has(MANIFEST):
        raise ValueError(
            f"data.root: {place.shown}: the shards are not finished; type the same `saga-ray data prepare` again to go on"
        )
    try:
        content = json.loads(place.read(MANIFEST))
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"data.root: {place.shown}/{MANIFEST}: is of format '{content['format']}', and this version reads '{FORMAT}'; prepare it again"
            )
        return ShardManifest.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ValueError(
            f"data.root: {place.shown}/{MANIFEST}: is damaged ({what_is_wrong(error)}); copy it again, or delete the folder and "
            f"prepare it again"
        ) from None


def what_is_wrong(error: ValueError) -> str:
    """The first thing that is wrong with a JSON file, in words."""
    if not isinstance(error, ValidationError):
        return "it is no JSON"
    first: Any = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")


def read_index(place: Place, manifest: ShardManifest) -> pa.Table:
    """A line per image, in the order of the tables train, validation and test.

    Raises:
        ValueError: if the file is not the one that the manifest names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = place.read(INDEX)
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise damaged_shard(place.shown, INDEX, "its SHA-256 is not the manifest's")
    return pq.read_table(pa.BufferReader(content))


def damaged_shard(shown: str, file: str, why: str) -> ValueError:
    """The sentence about a file that is not what was prepared."""
    return ValueError(
        f"data.root: {shown.rstrip('/')}/{file}: the shard is damaged ({why}); copy it again, or delete the folder and prepare it again"
    )
