"""One result: what was evaluated, on which data, and the scores; its key says what may be compared with what."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
KEY_FIELDS = (
    "dataset", "fingerprint", "split", "protocol", "backbone", "pretraining", "frozen", "dim",
    "label", "config_hash", "seed", "code_version",
)  # fmt: skip
"""What makes a result the same result; evaluating it again must give the same scores."""

Score = Annotated[float, Field(ge=0.0, le=1.0)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class PerClass(_Row):
    """Sums over the queries of each class, from which intervals are computed."""

    names: tuple[str, ...]
    num_queries: tuple[Annotated[int, Field(ge=1)], ...]
    sums: dict[str, tuple[Annotated[float, Field(ge=0.0)], ...]]
    """For each score that is a mean over queries: its sum over each class's queries."""

    @model_validator(mode="after")
    def _one_entry_per_class(self) -> Self:
        lengths = {len(self.names), len(self.num_queries), *(len(sums) for sums in self.sums.values())}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"per_class: its lists have {sorted(lengths)} entries; each needs one per class")
        return self


class Result(_Row):
    """A row of results; written once, never changed."""

    schema_version: int = Field(SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    dataset: str
    fingerprint: str
    """Of the data: rows of different fingerprints are never ranked together."""
    split: str
    protocol: str
    """Name of the rules of evaluation, `retrieval.metrics.PROTOCOL`."""
    backbone: str
    pretraining: str
    frozen: bool
    """True if nothing was trained."""
    dim: int = Field(ge=1)
    """Width of the embedding."""
    label: str
    """The method and every key changed from it."""
    method: str
    """The preset's name."""
    config_hash: str
    """Of the resolved config without the seed."""
    seed: int = Field(ge=0)
    code_version: str
    scores: dict[str, Score]
    """`recall@1`, ..., `map@r`, `nmi`, between 0 and 1."""
    per_class: PerClass
    partial: bool = False
    """True if the data set is incomplete."""
    num_images: int = Field(ge=2)
    num_single_image_classes: int = Field(0, ge=0)
    """Classes in the gallery that were not queried."""
    seconds: float = Field(0.0, ge=0)
    """Of training and evaluation."""
    created: str = ""
    """ISO 8601 time in UTC."""
    run: str = ""
    """Name of the run's folder."""
    per_query_file: str | None = Field(None, pattern=r"^[0-9a-f]{32}\.[0-9a-f]{8}\.per_query\.parquet$")
    """Parquet file beside this row; set by the store."""

    @model_validator(mode="after")
    def _scores_agree(self) -> Self:
        if "recall@1" not in self.scores:
            raise ValueError(f"scores: hold {', '.join(self.scores) or 'nothing'}; recall@1 is needed for ranking")
        for name, sums in self.per_class.sums.items():
            mean = sum(sums) / self.num_queries
            if name not in self.scores or abs(mean - self.scores[name]) > 1e-6:
                raise ValueError(f"scores.{name}: {self.scores.get(name)} is not the mean of per_class ({mean:.6f})")
        return self

    @property
    def num_queries(self) -> int:
        """Queries behind the scores."""
        return sum(self.per_class.num_queries)

    @property
    def num_classes(self) -> int:
        """Classes that were queried."""
        return len(self.per_class.names)

    @property
    def key(self) -> str:
        """32 hex digits over the fields in `KEY_FIELDS`."""
        identity = json.dumps({name: getattr(self, name) for name in KEY_FIELDS}, sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """As it is stored."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()


def differences(old: Result, new: Result) -> dict[str, tuple[Any, Any]]:
    """Scores in which two results of one key differ."""
    names = {**old.scores, **new.scores}
    return {
        name: (old.scores.get(name), new.scores.get(name))
        for name in names
        if old.scores.get(name) != new.scores.get(name)
    }
