import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from saga_ray.leaderboard.board import leaderboard
from saga_ray.leaderboard.render import FORMATS, _no_formula, render
from tests.leaderboard.rows import HOSTILE, make_result, study


@pytest.fixture
def rows():
    return leaderboard(study(), "demo")


@pytest.fixture
def hostile_rows():
    return leaderboard([make_result([5, 5], label=HOSTILE, method="saga", backbone=HOSTILE, dataset=HOSTILE)], None)


def test_json_is_a_list_of_objects_and_an_empty_board_an_empty_list(rows) -> None:
    assert [row["label"] for row in json.loads(render(rows, "json"))] == ["saga", "potential-field", "pretrained"]
    assert json.loads(render([], "json")) == []


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_takes_an_empty_board(format: str) -> None:
    assert render([], format).endswith("\n")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_a_table_never_is_wider_than_the_terminal_nor_cuts_a_number(rows, width: int) -> None:
    lines = render(rows, "table", width=width).splitlines()
    assert all(len(line) <= width for line in lines[1:])  # the caption may wrap as the terminal likes
    best = next(line for line in lines if line.startswith("1"))
    assert f"{100 * rows[0].scores['recall@1']:.1f}" in best.split()


def test_a_table_for_a_pipe_is_plain_and_complete(rows) -> None:
    text = render(rows, "table")
    assert text.isascii() and "\x1b" not in text
    for title in ("R@1", "R@2", "R@4", "R@8", "MAP@R", "NMI", "95 % interval", "vs best baseline", "seeds"):
        assert title in text
    (line,) = [line for line in text.splitlines() if line.startswith("2 |")]
    assert [cell.strip() for cell in line.split("|")][1] == "potential-field"


def test_a_table_without_unicode_is_ascii(rows) -> None:
    from saga_ray.leaderboard.render import render_table

    assert render_table(rows, width=80, unicode=False).isascii()
    assert not render_table(rows, width=80, unicode=True).isascii()
    assert "\x1b[1m" in render_table(rows, width=80, color=True)


def test_long_labels_wrap_and_are_not_lost() -> None:
    label = "potential-field (" + ", ".join(f"loss.weights.key{n}=0.25" for n in range(12)) + ")"
    text = render(leaderboard([make_result([5, 5], label=label)], "demo"), "table", width=80)
    words = "".join(line[3:].split("  ")[0].strip() for line in text.splitlines()[3:])
    assert label.replace(" ", "") in words.replace(" ", "")


def test_tables_of_different_data_are_said_not_to_compare() -> None:
    rows = leaderboard([make_result([5, 5]), make_result([9, 9], fingerprint="0" * 16)], "demo")
    assert "not comparable" in render(rows, "table") and "not comparable" in render(rows, "html")
    assert render(rows, "md").count("| # |") == 2


def test_incomplete_data_is_marked() -> None:
    assert "INCOMPLETE" in render(leaderboard([make_result([5, 5], partial=True)], "demo"), "table")


def test_no_control_character_reaches_the_terminal(hostile_rows) -> None:
    text = render(hostile_rows, "table", width=100)
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_rich_markup_in_a_name_is_text(rows) -> None:
    text = render(leaderboard([make_result([5, 5], label="[bold red]x[/]")], "demo"), "table", width=100)
    assert "[bold red]x[/]" in text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)

    def handle_data(self, data) -> None:
        self.text += data


def test_html_escapes_names_and_forbids_everything_foreign(hostile_rows) -> None:
    page = render(hostile_rows, "html")
    seen = _Tags()
    seen.feed(page)
    assert "script" not in seen.tags and "<script>alert('x')</script>" in seen.text
    assert "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'" in page
    assert not re.findall(r"(?:src|href)=[\"']?https?:", page)


def test_markdown_names_break_neither_table_nor_page(hostile_rows) -> None:
    text = render(hostile_rows, "md")
    lines = text.splitlines()
    assert len(lines) == 5 and "<script" not in text
    cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines[2:]]
    assert len(set(cells)) == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\n=1", "\r", "=cmd|' /C calc'!A0"])
def test_formulas_are_neutralised(text: str) -> None:
    assert _no_formula(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "saga", "saga (a=1)", "a-b", "1e-3"])
def test_plain_texts_stay(text: str) -> None:
    assert _no_formula(text) == text


def test_csv_comes_back_as_it_went(rows) -> None:
    read = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    assert [float(row["recall@1"]) for row in read] == [row.scores["recall@1"] for row in rows]
    assert float(read[2]["difference"]) < 0  # a number, not a text with an apostrophe
    assert [row["seeds"] for row in read] == ["0 1 2 3 4", "0 1 2 3 4", "0"]
    (row,) = csv.DictReader(io.StringIO(render(leaderboard([make_result([5, 5], label="=1+1")], "demo"), "csv")))
    assert row["label"] == "'=1+1"
