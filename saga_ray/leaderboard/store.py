"""Results as immutable JSON files named by their key: concurrent writers lose nothing and double nothing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from saga_ray.leaderboard.result import SCHEMA_VERSION, Result, differences

if TYPE_CHECKING:
    import pyarrow as pa

    from saga_ray.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "results"
BOARD_FILE = "leaderboard.parquet"


class Conflict(ValueError):
    """The same key with other scores: two evaluations of the same thing disagree."""


@dataclass(frozen=True)
class ResultStore:
    """The results below a folder of runs, at `results/<key>.json`, each with its queries in a Parquet file."""

    runs: Storage

    def add(self, result: Result, per_query: pa.Table | None = None) -> Literal["added", "identical"]:
        """Store a result, once, and bring `leaderboard.parquet` up to date.

        The queries are written first, under a name that holds their hash: a row never points to a missing file or to
        another evaluation's queries, whoever is interrupted.

        Returns:
            "added", or "identical" if the row was there with equal scores (nothing is written then).

        Raises:
            Conflict: if it was there with other scores; the stored row stays.
        """
        path, created = f"{FOLDER}/{result.key}.json", False
        if not self.runs.exists(path):
            if per_query is not None:
                result = result.model_copy(update={"per_query_file": self._write_queries(result.key, per_query)})
            created = self.runs.create(path, result.to_json())
            if created and self.runs.is_local:
                self.rebuild(_silent)
                return "added"
            # Object stores cannot refuse to overwrite; reading back tells whose row it is now.
        stored = self._read(path)
        if differing := differences(stored, result):
            shown = ", ".join(f"{name} {old} stored, {new} now" for name, (old, new) in differing.items())
            raise Conflict(
                f"{self.runs.root}/{path}: '{result.label}' seed {result.seed} on {result.dataset} is recorded with other "
                f"scores ({shown}; stored {stored.created or 'at an unknown time'} by run '{stored.run}', now run "
                f"'{result.run}'); nothing was changed: find out which is right, and delete the file to replace it"
            )
        if not (created and stored == result):
            return "identical"
        self.rebuild(_silent)
        return "added"

    def _write_queries(self, key: str, per_query: pa.Table) -> str:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(per_query, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        name = f"{key}.{hashlib.sha256(content).hexdigest()[:8]}.per_query.parquet"
        self.runs.create(f"{FOLDER}/{name}", content)
        return name

    def load(self, warn: Callable[[str], None] = logger.warning) -> list[Result]:
        """All readable results, in the order of their keys; `warn` gets a sentence for each that is not."""
        results = []
        for name in self._names():
            path = f"{FOLDER}/{name}"
            try:
                results.append(self._read(path))
            except FileNotFoundError:  # deleted since it was listed
                continue
            except ValueError as error:
                warn(f"{error}; the row is left out")
        return results

    def _read(self, path: str) -> Result:
        where = f"{self.runs.root}/{path}"  # not the URI, which may hold a password
        try:
            values = json.loads(self.runs.read(path))
        except ValueError:  # also what is not UTF-8
            raise ValueError(f"{where}: is not a readable result file (damaged?)") from None
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"{where}: has schema version {version}, this program reads version {SCHEMA_VERSION}")
        try:
            result = Result.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{where}: is not a valid result ({key}: {first['msg']})") from None
        if path != f"{FOLDER}/{result.key}.json":
            raise ValueError(f"{where}: holds a result whose key is {result.key}; was it renamed or edited?")
        return result

    def per_query(self, result: Result) -> pa.Table | None:
        """The queries of a stored result, as `RetrievalMetrics.per_query_table` wrote them; None if none were stored."""
        if result.per_query_file is None:
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pq.read_table(pa.BufferReader(self.runs.read(f"{FOLDER}/{result.per_query_file}")))

    def rebuild(self, warn: Callable[[str], None] = logger.warning) -> pa.Table:
        """Write `leaderboard.parquet`, one row per result, from the JSON files, which remain the truth."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        while True:
            names = self._names()
            table = results_table(self.load(warn))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            self.runs.write(BOARD_FILE, sink.getvalue().to_pybytes())
            if self._names() == names:  # else another writer may have rebuilt between our reading and our writing
                return table

    def _names(self) -> list[str]:
        return [name for name in self.runs.list(FOLDER) if name.endswith(".json") and not name.startswith(".")]


def _silent(_: str) -> None:
    """Whoever reads the board is warned; whoever adds a row did not ask about the others."""


def results_table(results: list[Result]) -> pa.Table:
    """Results as a table: the key, every plain field, and a column per score."""
    import pyarrow as pa

    score_names = sorted({name for result in results for name in result.scores})
    plain = [name for name in Result.model_fields if name not in ("scores", "per_class")]
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = {"key": pa.array([result.key for result in results], pa.string())}
    for name in plain:
        kind = kinds.get(Result.model_fields[name].annotation, pa.string())
        columns[name] = pa.array([getattr(result, name) for result in results], kind)
    for name in ("num_queries", "num_classes"):
        columns[name] = pa.array([getattr(result, name) for result in results], pa.int64())
    for name in score_names:
        columns[name] = pa.array([result.scores.get(name) for result in results], pa.float64())
    return pa.table(columns)
