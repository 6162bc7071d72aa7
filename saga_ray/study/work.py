"""One task of a study, in the process that does it: train, evaluate, look inside, and boil it down to a record."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from saga_ray import __version__
from saga_ray.config import RunConfig
from saga_ray.configure import label, to_yaml
from saga_ray.data.splits import SPLITS
from saga_ray.storage import Storage
from saga_ray.study.plan import Task
from saga_ray.study.record import Record, rounded, thinned
from saga_ray.types import Dataset, ImageSource

logger = logging.getLogger(__name__)

_KEPT_SUMS = ("recall@1", "map@r")
_KEPT_WORLDS = 2
_MAX_REMEMBERED_BYTES = 2**30


def do_task(task: Task, runs_uri: str, keep_run: bool = False) -> Record:
    """Run a task from its start or its last checkpoint; whatever goes wrong is this task's, and is in its record.

    Args:
        runs_uri: Folder in which the run works, below a folder of its own, which is deleted at the end.
    """
    from saga_ray.train.errors import NonFiniteError

    began, began_cpu = time.perf_counter(), time.process_time()
    try:
        record = _done(task, runs_uri)
    except NonFiniteError as error:
        record = without_scores(task, "not a number", str(error))
    except Exception as error:  # the study goes on with its other runs
        logger.debug("%s failed", task.title, exc_info=True)
        return without_scores(task, "failed", f"{type(error).__name__}: {error}")
    if not keep_run:
        Storage.open(runs_uri).delete(task.name)
    seconds = {"wall_s": round(time.perf_counter() - began, 3)}
    if record.device == "cpu":
        seconds["cpu_s"] = round(time.process_time() - began_cpu, 3)
    return record.model_copy(update=seconds)


def without_scores(task: Task, status: Any, cause: str) -> Record:
    """The record of a task that did not end well."""
    sentence = " ".join(cause.split())[:500]
    return Record(**_identity(task), status=status, cause=sentence, created=_now())


def _identity(task: Task) -> dict[str, Any]:
    same = ("name", "kind", "row", "world", "budget", "seed", "fingerprint", "weights")
    values = {key: getattr(task, key) for key in same}
    return values | {"values": dict(task.values), "split": task.config.evaluation.split, "label": label(task.config)}


def _done(task: Task, runs_uri: str) -> Record:
    from saga_ray.train.local import run_local
    from saga_ray.train.logs import METRICS
    from saga_ray.train.run_folder import environment

    config = task.config
    folder = Storage.open(runs_uri).child(task.name)
    run_name = _run_name(config)
    dataset = remembered_dataset(config, Storage.open(runs_uri))
    result = run_local(config, folder.uri, run_name, dataset=dataset)
    run = folder.child(run_name)
    lines = _lines(run.read(METRICS)) if run.exists(METRICS) else []
    environ, row = environment(), result.row
    return Record(
        **_identity(task),
        status="finished",
        scores=rounded(dict(result.scores), 6),
        num_queries=tuple(row["per_class"]["num_queries"]),
        sums={name: tuple(rounded(row["per_class"]["sums"][name], 6)) for name in _KEPT_SUMS},
        seconds=row["seconds"],
        steps=result.num_steps,
        scorer_tokens=scorer_tokens(lines),
        device=str(environ["device"]),
        code=f"{__version__} {(environ['git'] or '')[:10]}".strip(),
        created=_now(),
        curves=thinned(lines),
        diagnosis=_diagnosis(task, dataset, run.uri),
    )


def _diagnosis(task: Task, dataset: Dataset, run_uri: str) -> dict[str, Any] | None:
    """What `saga_ray.train.diagnosis` finds in the trained encoder, of rows that ask for it."""
    if not task.diagnose:
        return None
    from saga_ray.encoder.export import load_encoder
    from saga_ray.train import diagnosis
    from saga_ray.train.context import LocalContext

    encoder = load_encoder(run_uri).encoder.to(LocalContext().device)
    return rounded(diagnosis.diagnose(task.config, dataset, encoder), 4)


def _run_name(config: RunConfig) -> str:
    """A checkpoint belongs to one configuration, down to the keys that change no number."""
    return f"run-{hashlib.sha256(to_yaml(config).encode()).hexdigest()[:8]}"


def steps_done(runs: Storage, task: Task) -> int:
    """The last step that a run's log knows; 0 where there is none, or none to be seen from here."""
    from saga_ray.train.logs import METRICS

    run = runs.child(task.name).child(_run_name(task.config))
    lines = _lines(run.read(METRICS)) if run.exists(METRICS) else []
    return int(lines[-1]["step"]) if lines else 0


def scorer_tokens(lines: Sequence[Mapping[str, Any]]) -> int:
    """Tokens that the MLLM wrote or was given in a run, as its lines say."""
    return round(sum(line.get("scorer/tokens", 0.0) for line in lines))


def _lines(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for text in content.decode("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def identify(config: RunConfig) -> tuple[str, str]:
    """Fingerprint of a run's data, and 16 hex digits over its MLLM's weights and prompt files.

    Raises:
        ValueError: sentences about data or model folder.
    """
    return _fingerprint(config), _weights(config.mllm.path, config.mllm.revision)


def _fingerprint(config: RunConfig) -> str:
    key = config.model_dump_json(include={"dataset": True, "data": True, "evaluation": {"split"}})
    if key not in _FINGERPRINTS:
        from saga_ray.data import load_dataset

        _FINGERPRINTS[key] = load_dataset(config).fingerprint
    return _FINGERPRINTS[key]


_FINGERPRINTS: dict[str, str] = {}


@functools.cache
def _weights(path: str | None, revision: str | None) -> str:
    from saga_ray.model_folder import model_folder

    if revision is not None and path is not None and not Path(path).expanduser().is_dir():
        return revision[:16]  # a commit of a hub says it all
    digest = hashlib.sha256()
    for file in sorted(model_folder(path, revision).iterdir()):
        if file.suffix in (".safetensors", ".json", ".yaml", ".jinja") and file.name != "card.json":
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(2**28))
    return digest.hexdigest()[:16]


class RememberedSource:
    """An `ImageSource` that keeps the pictures it gave: a world is drawn once per process, not in every epoch of every run."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self._images: dict[tuple[int, int], np.ndarray] = {}
        self._num_bytes = 0

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        """As the source itself."""
        missing = sorted({int(row) for row in rows if (int(row), size) not in self._images})
        if self._num_bytes > _MAX_REMEMBERED_BYTES:
            return self.source.load(rows, size)
        if missing:
            loaded_NHWC = self.source.load(missing, size)
            self._num_bytes += loaded_NHWC.nbytes
            self._images |= {(row, size): image_HWC for row, image_HWC in zip(missing, loaded_NHWC, strict=True)}
        return np.stack([self._images[int(row), size] for row in rows])


def remembered_dataset(config: RunConfig, runs: Storage) -> Dataset:
    """The data set of a run, with its pictures kept in memory; the last few worlds are.

    Raises:
        ValueError: sentences about data, broken evaluation images among them.
    """
    key = config.model_dump_json(include={"dataset": True, "data": set(_WHAT_IS_SEEN)})
    if key not in _WORLDS:
        from saga_ray.data import load_dataset
        from saga_ray.train.evaluation_images import check_evaluation_images
        from saga_ray.train.progress import Silent

        dataset = load_dataset(config)
        check_evaluation_images(config, dataset, runs, Silent())
        tables = {name: dataset.split(name) for name in SPLITS}
        kept = {name: replace(table, source=RememberedSource(table.source)) for name, table in tables.items()}
        while len(_WORLDS) >= _KEPT_WORLDS:
            del _WORLDS[next(iter(_WORLDS))]
        _WORLDS[key] = replace(dataset, **kept)
    return _WORLDS[key]


_WORLDS: dict[str, Dataset] = {}
_WHAT_IS_SEEN = (
    "root", "image_size", "decode", "verify_counts", "validation_share", "world_seed", "confound", "home", "gap", "shift", "tied",
    "neighbour_distance", "num_classes", "num_images",
)  # fmt: skip
"""Keys of `data` that decide what pictures there are; the others say how they are used."""
