"""Which columns of Parquet files hold images, classes, names and splits: by their usual names, or alone of their kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saga_ray.data.splits import SPLIT_WORDS, SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")
_CLASS_NAMES = ("class_name", "label", "labels", "class", "target", "category", "species", "fine_label", "name")
_ID_NAMES = ("image_id", "id", "file_name", "filename", "path")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    image: str
    label: str
    image_id: str | None
    split: str | None
    class_names: list[str] | None
    """Of numbered classes, where the file names them."""

    @property
    def wanted(self) -> list[str]:
        """Those that are there."""
        return [name for name in (self.image, self.label, self.image_id, self.split) if name]


def columns_of(schema: pa.Schema, where: str) -> Columns:
    """Find the columns of a file.

    Raises:
        ValueError: for an image or class column that is missing or could be several.
    """
    import pyarrow as pa

    kinds = {field.name: field.type for field in schema}
    images = [name for name, kind in kinds.items() if _is_image(kind)]
    splits = [name for name in kinds if name.lower() == "split"]
    special = {*images, *_ID_NAMES, *splits}
    labels = [n for n, k in kinds.items() if n not in special and (_is_text(k) or pa.types.is_integer(k))]
    image = _chosen(images, _IMAGE_NAMES, f"{where}: image column", list(kinds), "of image bytes", "image")
    label = _chosen(labels, _CLASS_NAMES, f"{where}: class column", list(kinds), "of words or numbers", "label")
    image_id = next((name for name in _ID_NAMES if name in kinds and name != label), None)
    split = next((name for name in splits if _is_text(kinds[name])), None)
    return Columns(image, label, image_id, split, _hub_names(schema, label))


def _chosen(found: list[str], usual: Sequence[str], what: str, all_names: list[str], kind: str, name: str) -> str:
    for candidate in usual:
        if candidate in found:
            return candidate
    if len(found) == 1:
        return found[0]
    seen = "no column" if not found else f"several columns ({', '.join(found)})"
    raise ValueError(
        f"data.root: {what}: {seen} {kind} among {', '.join(all_names)}; name the one that is meant '{name}'"
    )


def _hub_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Names of a ClassLabel feature, as the `datasets` library writes them into the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def check_same(schema: pa.Schema, columns: Columns, first: pa.Schema, where: str, first_file: str) -> None:
    """Refuse a file that cannot be read together with the first one.

    Raises:
        ValueError: naming the column that is missing or of another kind.
    """
    for name in columns.wanted:
        if name not in schema.names:
            raise ValueError(
                f"data.root: {where}: has no column '{name}', which {first_file} has; keep files of one kind in the folder"
            )
        kind, expected = _kind(schema.field(name).type), _kind(first.field(name).type)
        if name in (columns.image, columns.label) and kind not in (expected, "nothing"):
            raise ValueError(
                f"data.root: {where}: column '{name}' holds {kind}, but that of {first_file} {expected}; "
                f"keep files of one kind in the folder"
            )


def split_word(value: object, where: str) -> str | None:
    """The split that a value of the split column means; None where there is none.

    Raises:
        ValueError: for a word that is not known: guessing could train on test classes.
    """
    word = str(value if value is not None else "").strip().lower()
    if not word:
        return None
    if word not in SPLIT_WORDS:
        raise ValueError(
            f"data.root: {where}: '{value}' in the split column is no split; write {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, "
            f"or remove the column"
        )
    return SPLIT_WORDS[word]


def _kind(type_: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_null(type_):
        return "nothing"
    if _is_image(type_):
        return "image bytes"
    if _is_text(type_):
        return "words"
    return "numbers" if pa.types.is_integer(type_) else f"values of type {type_}"


def _is_image(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
