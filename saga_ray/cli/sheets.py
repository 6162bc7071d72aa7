"""Sheets of pictures that `saga-ray data show --out` writes: each class, and pairs that an encoder takes for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_ray.cli.terminal import progress, say

if TYPE_CHECKING:
    import numpy as np

    from saga_ray.config import RunConfig
    from saga_ray.encoder.export import ImageEmbedder
    from saga_ray.types import ImageTable

IMAGES_PER_CLASS = 8
"""Images of each class among which hard pairs are looked for."""


class Steps:
    """Progress of a long job: called with what is done and how much there is."""

    def __init__(self, shown: Any) -> None:
        self.stage: Callable[[str], None] = shown.stage
        self._shown = shown

    def __call__(self, done: int, total: int) -> None:
        self._shown.step(done, max(total, done), {})


@contextmanager
def stage(text: str) -> Iterator[Steps]:
    """A long job, drawn while it lasts."""
    with progress() as shown:
        if text:
            shown.stage(text)
        yield Steps(shown)


def draw_sheets(table: ImageTable, out: Path, encoder: str | None, config: RunConfig) -> None:
    """Write a PNG of every class and `hard-pairs.png`.

    Raises:
        ValueError: for a folder that is not empty, or an encoder that cannot be loaded.
    """
    import numpy as np

    from saga_ray.data.inspect.contact_sheet import class_sheet, hard_pairs, pair_sheet, sheet_name, write_picture

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: is not empty; name a new or empty folder")
    embedder = _embedder(encoder, config)
    out.mkdir(parents=True, exist_ok=True)
    with stage("drawing classes") as step:
        for label, name in enumerate(table.class_names):
            write_picture(class_sheet(table, label), out / sheet_name(label + 1, name))
            step(label + 1, len(table.class_names))
        step.stage("looking for hard pairs")
        of_class = [np.flatnonzero(table.labels_N == label) for label in range(len(table.class_names))]
        rows_M = np.concatenate([rows[:IMAGES_PER_CLASS] for rows in of_class])
        embeddings_ME = _embeddings(table, rows_M, embedder, step)
        found = hard_pairs(embeddings_ME, table.labels_N[rows_M], num_pairs=20)
    pairs = [(int(rows_M[first]), int(rows_M[second]), cosine) for first, second, cosine in found]
    write_picture(pair_sheet(table, pairs), out / "hard-pairs.png")
    say(f"Wrote {len(table.class_names)} classes and hard-pairs.png to {out}")


def _embedder(run: str | None, config: RunConfig) -> ImageEmbedder:
    from saga_ray.encoder.encoder import build_encoder
    from saga_ray.encoder.export import ImageEmbedder, load_encoder

    return load_encoder(run) if run else ImageEmbedder(build_encoder(config).eval(), config.data.image_size)


def _embeddings(table: ImageTable, rows_M: np.ndarray, embedder: ImageEmbedder, step: Steps) -> np.ndarray:
    """Embeddings of some rows, 0 for images that cannot be read."""
    import numpy as np
    import torch

    from saga_ray.train.embed import load_images

    parts = []
    with torch.no_grad():
        for start in range(0, len(rows_M), 64):
            rows = rows_M[start : start + 64].tolist()
            images_NHWC, readable_N = load_images(table, rows, embedder.image_size, skip_broken=True)
            parts.append(embedder(images_NHWC).numpy() * readable_N[:, None])
            step(start + len(rows), len(rows_M))
    return np.concatenate(parts)
