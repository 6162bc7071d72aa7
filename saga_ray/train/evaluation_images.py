"""Before anything is trained: can the images be read on which it will be judged?"""

from __future__ import annotations

import json

from saga_ray.config import RunConfig
from saga_ray.data.files.places import without_password
from saga_ray.data.inspect.readable import has_files, last_changes, unreadable
from saga_ray.storage import Storage
from saga_ray.train.progress import Progress
from saga_ray.types import Dataset

FOLDER = "checked"
"""Folder in the folder of runs: a file for every data set that was found to be sound."""
_SHOWN = 5


def check_evaluation_images(config: RunConfig, dataset: Dataset, runs: Storage, progress: Progress) -> None:
    """Decode the images of validation and test classes, once for each data set and folder of runs.

    Without it a broken one would end the run where it is evaluated, after hours of training.

    Raises:
        ValueError: naming the files that cannot be decoded.
    """
    tables = [dataset.validation, dataset.test]
    if not config.evaluation.check_images or not all(map(has_files, tables)):
        return
    note = {"images": sum(map(len, tables)), "changed": last_changes(tables)}
    path = f"{FOLDER}/{dataset.fingerprint}.json"
    if _known(runs, path) == note:
        return
    progress.stage(f"checking {note['images']} validation and test images")
    broken = unreadable(tables, lambda done, total: progress.step(done, total, {}))
    if broken:
        shown = ", ".join(f"{error.path} ({error.reason})" for error in broken[:_SHOWN])
        raise ValueError(
            f"data.root: {len(broken):,} of {note['images']:,} validation and test images cannot be read: {shown}"
            f"{', ...' if len(broken) > _SHOWN else ''}; without them scores would be those of other data: replace or remove the files "
            f"(`saga-ray data check {without_password(str(config.data.root))}` lists all)"
        )
    runs.write(path, json.dumps(note).encode())


def _known(runs: Storage, path: str) -> object:
    try:
        return json.loads(runs.read(path))
    except (OSError, ValueError):
        return None
