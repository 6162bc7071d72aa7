"""How every figure looks, and its bytes: PNG and SVG that depend on the data alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saga_ray.leaderboard.html import as_storage, visible

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from saga_ray.storage import Storage

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart."""
DASHES = ("-", "--", "-.", ":")
INK, MUTED, GRID_LINE = "#1b2126", "#5c6670", "#e2e2dc"

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: equal on every machine
    "font.size": 10,
    "text.parse_math": False,  # labels are data, "$" is a dollar
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID_LINE,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID_LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "svg.hashsalt": "saga-ray",
    "svg.fonttype": "path",
}


def save_figure(figure: Figure, folder: Storage | Path | str, name: str) -> None:
    """Write `name`.png and `name`.svg."""
    storage = as_storage(folder)
    storage.write(f"{name}.png", to_png(figure))
    storage.write(f"{name}.svg", to_svg(figure))


def to_png(figure: Figure) -> bytes:
    """Pixels, at 160 per inch."""
    return _saved(lambda sink: figure.savefig(sink, format="png", dpi=160, metadata={"Software": None}))


def to_svg(figure: Figure) -> bytes:
    """Lines, letters as outlines."""
    return _saved(lambda sink: figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None}))


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    sink = io.BytesIO()
    with styled():
        save(sink)
    return sink.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def styled() -> Iterator[None]:
    """Within: our style, nobody's matplotlibrc."""
    import warnings

    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def shortened(text: str, length: int) -> str:
    """A label of at most `length` characters, control characters made visible."""
    text = visible(text)
    return text if len(text) <= length else text[: length - 3] + "..."
