"""The board as a table for terminals, JSON, CSV, Markdown and HTML; every name in it is data, never markup."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saga_ray.leaderboard.board import BoardRow, score_order, tables
from saga_ray.leaderboard.html import render_template, visible

FORMATS = ("table", "json", "csv", "md", "html")
EMPTY = "No results yet."


@dataclass(frozen=True)
class Column:
    """A column of the board, for people."""

    title: str
    text: Callable[[BoardRow], str]
    is_number: bool = True


def render(rows: Sequence[BoardRow], format: str, *, width: int | None = None, color: bool = False) -> str:
    """The board in one of `FORMATS`.

    Args:
        width: Columns of the terminal, for `table`; None where the output is not a terminal: then nothing is left out.
        color: For `table`: style the terminal's text.
    """
    if format == "table":
        return render_table(rows, width=width, color=color)
    return {"json": render_json, "csv": render_csv, "md": render_markdown, "html": render_html}[format](rows)


def columns(rows: Sequence[BoardRow]) -> list[Column]:
    """What people see of the rows, percentages instead of shares."""
    names = sorted({name for row in rows for name in row.scores}, key=score_order)
    scores = [Column(_title(name), lambda row, name=name: _percent(row.scores.get(name))) for name in names]
    return [
        Column("#", lambda row: str(row.rank)),
        Column("method", lambda row: visible(row.label), is_number=False),
        *scores[:1],
        Column("95 % interval", lambda row: _interval(row.intervals.get("recall@1"))),
        *scores[1:],
        Column("vs best baseline", _difference),
        Column("seeds", lambda row: str(len(row.seeds))),
        *[column for column in _BACKGROUND if len({column.text(row) for row in rows}) > 1],
    ]


_BACKGROUND = (
    Column("backbone", lambda row: visible(row.backbone), is_number=False),
    Column("pre-training", lambda row: visible(row.pretraining), is_number=False),
    Column("trained", lambda row: "no" if row.frozen else "yes", is_number=False),
    Column("dim", lambda row: str(row.dim)),
)
"""Columns of a table whose rows differ in them; otherwise its caption says it once."""


def caption(rows: Sequence[BoardRow]) -> str:
    """What a table was measured on, and what its rows have in common."""
    row = rows[0]
    shared = [
        f"{column.title} {column.text(row)}"
        for column in _BACKGROUND
        if column.title != "trained" and len({column.text(other) for other in rows}) == 1
    ]
    return ", ".join(
        [
            f"{visible(row.dataset)}, {visible(row.split)} split: {row.num_classes} classes, {row.num_queries} queries",
            *(["INCOMPLETE data set"] if row.partial else []),
            *shared,
            f"protocol {visible(row.protocol)}",
            f"data {visible(row.fingerprint)}",
        ]
    )


_BY_WORTH = ("vs best baseline", "95 % interval", "MAP@R", "R@8", "seeds", "NMI", "R@2", "R@4", "dim", "backbone", "pre-training", "trained")  # fmt: skip
"""Columns beside rank, method and R@1; a narrow terminal shows those that fit, in this order of worth."""


def render_table(
    rows: Sequence[BoardRow], *, width: int | None = None, color: bool = False, unicode: bool | None = None
) -> str:
    """For a terminal of `width` columns, or plain text that leaves nothing out.

    Args:
        unicode: Lines may be drawn with characters beyond ASCII; None asks the standard output.
    """
    if not rows:
        return EMPTY + "\n"
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if unicode is None:
        unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    frame = box.SIMPLE_HEAD if unicode and width is not None else box.ASCII2
    sink = io.StringIO()
    console = Console(file=sink, width=width or 10_000, force_terminal=color, no_color=not color, legacy_windows=False)
    for number, members in enumerate(tables(rows)):
        shown = _that_fit(members, width)
        is_simple = frame is box.SIMPLE_HEAD
        table = Table(box=frame, show_edge=False, pad_edge=False, collapse_padding=is_simple)
        for column in shown:
            table.add_column(
                Text(column.title, style="bold" if color else ""),
                justify="right" if column.is_number else "left",
                overflow="fold",
                no_wrap=column.is_number,
            )
        for row in members:
            style = "bold" if color and row.rank == 1 else ""
            table.add_row(*(Text(column.text(row), style=style) for column in shown))
        console.print(Text(("\n" if number else "") + caption(members)), soft_wrap=True)
        console.print(table)
    if len(tables(rows)) > 1:
        console.print(Text("\nRows of different tables were measured on different data and are not comparable."))
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _that_fit(rows: Sequence[BoardRow], width: int | None) -> list[Column]:
    every = columns(rows)
    if width is None:
        return every
    by_title = {column.title: column for column in every}
    kept = [by_title.pop(column.title) for column in every[:3]]
    for title in sorted(by_title, key=lambda title: _BY_WORTH.index(title) if title in _BY_WORTH else len(_BY_WORTH)):
        if _natural_width([*kept, by_title[title]], rows) <= width:
            kept.append(by_title[title])
    return [column for column in every if column in kept]


def _natural_width(shown: list[Column], rows: Sequence[BoardRow]) -> int:
    widths = [max(len(column.title), *(len(column.text(row)) for row in rows)) for column in shown]
    # Names may wrap, below 24 columns of their own; numbers never.
    return sum((wide if column.is_number else min(wide, 24)) + 2 for column, wide in zip(shown, widths, strict=True))


def render_json(rows: Sequence[BoardRow]) -> str:
    """A list of objects, `[]` if there are none."""
    return json.dumps([row.as_json() for row in rows], indent=2, allow_nan=False) + "\n"


def render_csv(rows: Sequence[BoardRow]) -> str:
    """One line per row; texts that a spreadsheet would run as a formula get a leading apostrophe."""
    names = [
        "rank", "method", "label", "recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi",
        "interval_low", "interval_high", "difference", "difference_low", "difference_high", "baseline", "seeds",
        "dataset", "split", "fingerprint", "protocol", "partial", "backbone", "pretraining", "frozen", "dim",
        "num_classes", "num_queries",
    ]  # fmt: skip
    sink = io.StringIO()
    writer = csv.DictWriter(sink, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        values = row.as_json()
        values["interval_low"], values["interval_high"] = values["interval"] or (None, None)
        difference = values["difference"] or {"baseline": None, "mean": None, "interval": (None, None)}
        values["difference"], values["baseline"] = difference["mean"], difference["baseline"]
        values["difference_low"], values["difference_high"] = difference["interval"]
        values["seeds"] = " ".join(str(seed) for seed in row.seeds)
        writer.writerow(
            {name: _no_formula(value) if isinstance(value, str) else value for name, value in values.items()}
        )
    return sink.getvalue()


def _no_formula(text: str) -> str:
    # Spreadsheets skip leading blanks before they look for the sign.
    runs = text.lstrip(" \t\r\n\0").startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r", "\n"))
    return f"'{text}" if runs else text


def render_markdown(rows: Sequence[BoardRow]) -> str:
    """Tables as GitHub shows them."""
    if not rows:
        return EMPTY + "\n"
    parts = []
    for members in tables(rows):
        shown = columns(members)
        lines = [f"**{_markdown(caption(members))}**", ""]
        lines.append("| " + " | ".join(_markdown(column.title) for column in shown) + " |")
        lines.append("|" + "|".join("---:" if column.is_number else "---" for column in shown) + "|")
        lines += ["| " + " | ".join(_markdown(column.text(row)) for column in shown) + " |" for row in members]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\|`*_[]#~$" and text != "#" else letter for letter in text)


def render_html(rows: Sequence[BoardRow], title: str = "Leaderboard") -> str:
    """A page of its own."""
    return render_template("leaderboard.html", title=title, boards=html_boards(rows), empty=EMPTY)


def html_boards(rows: Sequence[BoardRow]) -> list[dict[str, object]]:
    """Tables as the templates take them: caption, heads, and cells as (text, is a number)."""
    boards = []
    for members in tables(rows):
        shown = columns(members)
        boards.append(
            {
                "caption": caption(members),
                "heads": [(column.title, column.is_number) for column in shown],
                "lines": [[(column.text(row), column.is_number) for column in shown] for row in members],
            }
        )
    return boards


def _title(name: str) -> str:
    return name.replace("recall@", "R@").replace("map@r", "MAP@R").replace("nmi", "NMI")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"


def _difference(row: BoardRow) -> str:
    if row.difference is None:
        return "-"
    low, high = row.difference.interval
    return f"{100 * row.difference.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
