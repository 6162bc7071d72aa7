"""What the MLLM said, as Parquet: `completions.parquet` of a run, one row per pair.

A run keeps a sample of what was said, in one file. With `scorer.store_answers` it keeps everything: `completions.parquet` is then a
folder of part files, as other tools write them too, which `pyarrow.parquet.read_table` and pandas read like one file. A part holds
the steps in its name, is written whole and never changed; parts end where checkpoints stand. So a run that is killed and
goes on from a checkpoint drops the parts behind it and writes the same rows once more: none is lost, none stands twice.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from saga_ray.mllm.answers import parse_answer
from saga_ray.storage import Storage
from saga_ray.train.step import StepReport
from saga_ray.types import ImageTable

logger = logging.getLogger(__name__)

COMPLETIONS = "completions.parquet"
MAX_COMPLETED_PAIRS = 4096
"""Pairs kept of a sample, the oldest go first; and pairs that wait in memory before they become a part."""
PAIRS_PER_RECORDED_STEP = 16
_PART = re.compile(r"steps-(\d{8})-(\d{8})\.parquet")

Row = Mapping[str, Any]


class Completions(Protocol):
    """Where rows go."""

    def add(self, step: int, rows: Sequence[Row]) -> None:
        """The pairs of a step."""
        ...

    def sync(self) -> None:
        """Make everything so far durable."""
        ...


class SampledCompletions:
    """Some pairs of some steps, in one file that is written anew."""

    def __init__(self, run: Storage, step: int, num_steps: int) -> None:
        self._run = run
        self._rows: list[Row] = list(_kept_rows(run, step))
        self._record_every = max(1, num_steps // 64)

    def add(self, step: int, rows: Sequence[Row]) -> None:
        """Remember some of them, now and then."""
        if step % self._record_every == 0 or step == 1:
            self._rows += rows[:PAIRS_PER_RECORDED_STEP]
            del self._rows[:-MAX_COMPLETED_PAIRS]

    def sync(self) -> None:
        """Write the file anew."""
        if self._rows:
            self._run.write(COMPLETIONS, _to_parquet(self._rows))


class AllCompletions:
    """Every answer, in parts."""

    def __init__(self, run: Storage, step: int) -> None:
        self._folder = run.child(COMPLETIONS)
        self._rows: list[Row] = []
        self._written = self._seen = step
        for name in self._folder.list():
            match = _PART.fullmatch(name)
            if match is not None and int(match.group(2)) > step:
                self._folder.delete(name)

    def add(self, step: int, rows: Sequence[Row]) -> None:
        """All rows of a step; many at once become a part."""
        if len(self._rows) + len(rows) > MAX_COMPLETED_PAIRS:
            self.sync()
        self._rows += rows
        self._seen = step

    def sync(self) -> None:
        """Write what waits as a part."""
        if self._rows:
            name = f"steps-{self._written + 1:08d}-{self._seen:08d}.parquet"
            self._folder.write(name, _to_parquet(self._rows, every=True))
        self._rows, self._written = [], self._seen


def completion_rows(step: int, report: StepReport, table: ImageTable, verdict_key: str | None = None) -> list[Row]:
    """This rank's scored pairs of a step, one row each.

    Args:
        verdict_key: With it rows also hold the tokens of every answer (int ids, padding left out) and its spans: the
            characters `start .. stop - 1` of a text that are a value of image 1 or 2.
    """
    chosen = {(each.place, each.pair) for each in report.chosen}
    rows = []
    for place, scored in enumerate(report.scored):
        result = scored.result
        if result is None:
            continue
        for number, pair in enumerate(scored.batch.pairs):
            first, second = (int(scored.batch.rows_N[position]) for position in (pair.first, pair.second))
            row: dict[str, Any] = {
                "step": step,
                "micro_batch": scored.batch.index,
                "pair": pair.number,
                "image_id_1": table.image_ids[first],
                "image_id_2": table.image_ids[second],
                "class_1": table.class_names[int(table.labels_N[first])],
                "class_2": table.class_names[int(table.labels_N[second])],
                "same_class": pair.same_class,
                "used": (place, number) in chosen,
                "texts": list(result.texts_PG[number]),
                "rewards": result.rewards_PG[number].tolist(),
                "advantages": result.advantages_PG[number].tolist(),
                "verdicts": result.verdicts_PG[number].tolist(),
                "well_formed": result.well_formed_PG[number].tolist(),
                "num_tokens": result.num_tokens_PG[number].tolist(),
            }
            if verdict_key is not None:
                ids = result.token_ids_PGR[number].tolist()
                row["token_ids"] = [[token for token in answer if token >= 0] for answer in ids]
                row["spans"] = [_spans(text, verdict_key) for text in result.texts_PG[number]]
            rows.append(row)
    return rows


def _spans(text: str, verdict_key: str) -> list[dict[str, Any]]:
    return [
        {"image": span.image + 1, "attribute": span.attribute, "start": span.start, "stop": span.stop}
        for span in parse_answer(text, verdict_key).spans
    ]


def _to_parquet(rows: Sequence[Row], *, every: bool = False) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=_schema() if every else None), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _schema() -> Any:
    """Of parts: said beforehand, since lists that happen to be empty have no type."""
    import pyarrow as pa

    kinds: dict[str, Any] = {name: pa.int64() for name in ("step", "micro_batch", "pair")}
    kinds |= {name: pa.string() for name in ("image_id_1", "image_id_2", "class_1", "class_2")}
    kinds |= {"same_class": pa.bool_(), "used": pa.bool_(), "texts": pa.list_(pa.string())}
    kinds |= {"rewards": pa.list_(pa.float64()), "advantages": pa.list_(pa.float64())}
    kinds |= {"verdicts": pa.list_(pa.int8()), "well_formed": pa.list_(pa.bool_()), "num_tokens": pa.list_(pa.int64())}
    span = pa.struct({"image": pa.int8(), "attribute": pa.string(), "start": pa.int32(), "stop": pa.int32()})
    kinds |= {"token_ids": pa.list_(pa.list_(pa.int32())), "spans": pa.list_(pa.list_(span))}
    return pa.schema(kinds)


def _kept_rows(run: Storage, step: int) -> list[Row]:
    """Rows of a sample up to a step."""
    if step == 0 or not run.exists(COMPLETIONS):
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(pa.BufferReader(run.read(COMPLETIONS))).to_pylist()
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s/%s cannot be read (%s); it starts anew", run.uri, COMPLETIONS, error)
        return []
    return [row for row in rows if row["step"] <= step]
