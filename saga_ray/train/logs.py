"""What a run writes while it trains: metrics.jsonl, TensorBoard events, completions.parquet; by one rank."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saga_ray.storage import Storage
from saga_ray.train.step import StepReport
from saga_ray.types import ImageTable

logger = logging.getLogger(__name__)

METRICS, COMPLETIONS, EVENTS = "metrics.jsonl", "completions.parquet", "tensorboard"
MAX_COMPLETED_PAIRS = 4096
"""Pairs kept in completions.parquet; the oldest go first."""
PAIRS_PER_RECORDED_STEP = 16


class RunLog:
    """Opened at a checkpoint's step: lines up to it stay, later ones go.

    On storage that is not this machine's disk, files grow in a temporary folder and are copied at every `sync`.
    """

    def __init__(self, run: Storage, step: int, num_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._temporary = None if run.is_local else tempfile.TemporaryDirectory(prefix="saga-ray-")
        self._folder = run.local_path() if self._temporary is None else Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = kept_lines(run, step)
        (self._folder / METRICS).write_text("".join(kept), encoding="utf-8")
        self._metrics = (self._folder / METRICS).open("a", encoding="utf-8", buffering=1)
        self._completions = _kept_completions(run, step)
        self._record_every = max(1, num_steps // 64)
        self._events = SummaryWriter(str(self._folder / EVENTS), purge_step=step + 1 if step else None)

    def step(self, metrics: Mapping[str, float | str]) -> None:
        """Append one flushed line."""
        self._metrics.write(json.dumps(metrics) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, int(metrics["step"]))

    def completions(self, step: int, report: StepReport, table: ImageTable) -> None:
        """Remember some of what the MLLM said."""
        if step % self._record_every == 0 or step == 1:
            self._completions += completion_rows(step, report, table)[:PAIRS_PER_RECORDED_STEP]
            del self._completions[:-MAX_COMPLETED_PAIRS]

    def sync(self) -> None:
        """Make everything so far durable."""
        self._events.flush()
        if self._completions:
            self._run.write(COMPLETIONS, _to_parquet(self._completions))
        if self._temporary is not None:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    self._run.write(path.relative_to(self._folder).as_posix(), path.read_bytes())

    def close(self) -> None:
        """Sync and let go of the files."""
        self.sync()
        self._metrics.close()
        self._events.close()
        if self._temporary is not None:
            self._temporary.cleanup()


def kept_lines(run: Storage, step: int) -> list[str]:
    """Lines of metrics.jsonl up to a step; a line that was cut off by a crash, and all after it, are gone."""
    if step == 0 or not run.exists(METRICS):
        return []
    kept = []
    for line in run.read(METRICS).decode("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    return kept


def completion_rows(step: int, report: StepReport, table: ImageTable) -> list[dict[str, Any]]:
    """This rank's scored pairs of a step, one row each."""
    chosen = {(each.place, each.pair) for each in report.chosen}
    rows = []
    for place, scored in enumerate(report.scored):
        result = scored.result
        if result is None:
            continue
        for number, pair in enumerate(scored.batch.pairs):
            first, second = (int(scored.batch.rows_N[position]) for position in (pair.first, pair.second))
            rows.append(
                {
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
            )
    return rows


def _to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _kept_completions(run: Storage, step: int) -> list[dict[str, Any]]:
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
