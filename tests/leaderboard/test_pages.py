import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_ray.leaderboard.board import leaderboard
from saga_ray.leaderboard.gallery import GalleryRun, write_gallery
from saga_ray.leaderboard.html import render_template
from saga_ray.leaderboard.pages import JudgedAnswer, JudgedPair, Link, described, write_demo_page
from saga_ray.leaderboard.plots import CurveRun
from saga_ray.storage import Storage
from saga_ray.types import ImageTable
from tests.leaderboard.rows import HOSTILE, study

ATTACK = "<script>alert('x')</script>"


class GreyPictures:
    """Every picture in one shade, its row."""

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        return np.stack([np.full((size, size, 3), row, np.uint8) for row in rows])


def image_table(class_names: tuple[str, ...] = ("owl", "wren", "jay")) -> ImageTable:
    ids = ("../../escape", *(f"image {number}" for number in range(1, 9)))
    return ImageTable(ids, np.repeat(np.arange(3), 3), class_names, GreyPictures())


def queries(table: ImageTable, seed: int):
    """What random embeddings find, in the form of `RetrievalMetrics.per_query_table`."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    rows = []
    for row, image_id in enumerate(table.image_ids):
        near = rng.permutation([other for other in range(9) if other != row])
        same = table.labels_N[near] == table.labels_N[row]
        rows.append(
            {
                "image_id": image_id,
                "label": int(table.labels_N[row]),
                "hit@1": bool(same[0]),
                "ap@r": float(same[:2].mean()),
                "neighbours": [table.image_ids[other] for other in near],
                "cosines": np.linspace(0.9, 0.1, 8).tolist(),
            }
        )
    return pa.Table.from_pylist(rows)


class _Page(HTMLParser):
    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str]] = []
        self.queries: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        assert not any(name.startswith("on") for name in values), f"{tag} has an event handler"
        if tag == "img":
            self.images.append(values)
        if tag == "article":
            self.queries.append(values["class"].split()[-1])
        if tag == "a":
            self.links.append(values["href"])

    def handle_data(self, data) -> None:
        self.text += data


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_gallery_shows_every_query_hardest_first_with_pictures_that_exist(tmp_path: Path) -> None:
    table = image_table()
    found = queries(table, seed=0)
    page = _Page(write_gallery(tmp_path / "g", "Gallery", table, [GalleryRun("saga", found)]))
    assert len(page.queries) == 9 and {"right", "wrong"} == set(page.queries)
    precisions = [float(number) for number in re.findall(r"average precision at R (\d\.\d\d)", page.text)]
    assert precisions == sorted(precisions)
    assert all((tmp_path / "g" / image["src"]).is_file() for image in page.images)
    assert len(page.images) == 9 * (1 + 8)


def test_right_and_wrong_are_said_in_words_and_marks_not_by_colour_alone(tmp_path: Path) -> None:
    table = image_table()
    page = _Page(write_gallery(tmp_path, "Gallery", table, [GalleryRun("saga", queries(table, 0))]))
    neighbours = [image["alt"] for image in page.images if image["alt"].startswith("Neighbour")]
    num_same = sum(alt.endswith("same class") for alt in neighbours)
    assert num_same == 9 * 2 and sum(alt.endswith("another class") for alt in neighbours) == 9 * 6
    # one of each mark stands in the explanation
    assert page.text.count("\u2713") == num_same + 1 and page.text.count("\u2717") == 9 * 6 + 1


def test_pictures_are_those_of_their_images(tmp_path: Path) -> None:
    table = image_table()
    write_gallery(tmp_path, "Gallery", table, [GalleryRun("saga", queries(table, 0))], thumbnail_px=32)
    page = _Page(tmp_path / "index.html")
    for image in page.images:
        shade = np.asarray(Image.open(tmp_path / image["src"])).mean()
        assert image["alt"].split(": ")[1].split(",")[0] == table.class_names[round(shade) // 3]


def test_two_runs_are_compared_by_won_and_lost(tmp_path: Path) -> None:
    table = image_table()
    first, second = queries(table, 0), queries(table, 1)
    page = _Page(write_gallery(tmp_path, "A/B", table, [GalleryRun("baseline", first), GalleryRun("saga", second)]))
    pairs = zip(first["hit@1"].to_pylist(), second["hit@1"].to_pylist(), strict=True)
    names = {(True, True): "right", (False, False): "wrong", (True, False): "lost", (False, True): "won"}
    assert sorted(page.queries) == sorted(names[pair] for pair in pairs)
    assert {"won", "lost"} <= set(page.queries) and "baseline" in page.text


def test_runs_over_other_images_are_refused(tmp_path: Path) -> None:
    table = image_table()
    found = queries(table, 0)
    with pytest.raises(ValueError, match="not queried with the same images"):
        write_gallery(tmp_path, "A/B", table, [GalleryRun("a", found), GalleryRun("b", found.slice(1))])
    fewer = ImageTable(table.image_ids[:6], table.labels_N[:6], table.class_names, table.source)
    with pytest.raises(ValueError, match="3 images that this split does not hold"):
        write_gallery(tmp_path, "A", fewer, [GalleryRun("a", found)])
    assert not list(tmp_path.iterdir())


def test_of_many_queries_the_hardest_of_each_outcome_are_kept(tmp_path: Path) -> None:
    table = image_table()
    found = queries(table, 0)
    num_right = sum(found["hit@1"].to_pylist())
    page = _Page(write_gallery(tmp_path, "G", table, [GalleryRun("saga", found)], max_queries=4))
    assert sorted(page.queries) == ["right", "right", "wrong", "wrong"]
    assert f"2 of {num_right} right at 1" in page.text


def test_hostile_names_stay_text_and_files_stay_in_the_folder(tmp_path: Path) -> None:
    table = image_table((HOSTILE, f'"><img src=x onerror=alert(1)>{ATTACK}', "x" * 300))
    write_gallery(tmp_path / "inner", ATTACK, table, [GalleryRun(ATTACK, queries(table, 0))], details=ATTACK)
    page = _Page(tmp_path / "inner" / "index.html")
    assert "script" not in page.tags and ATTACK in page.text
    assert all(re.fullmatch(r"thumbnails/[0-9a-f]{20}\.jpg", image["src"]) for image in page.images)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    text = (tmp_path / "inner" / "index.html").read_text()
    assert "\u202e" not in text and "\x1b" not in text


def test_pages_forbid_scripts_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    table = image_table()
    write_gallery(tmp_path / "a", "G", table, [GalleryRun("saga", queries(table, 0))])
    write_demo_page(tmp_path / "b", "Demo", leaderboard(study(), "demo"), pairs=[judged_pair()])
    for folder in ("a", "b"):
        text = (tmp_path / folder / "index.html").read_text()
        assert "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'" in text
        assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text


def test_equal_inputs_give_equal_files(tmp_path: Path) -> None:
    table = image_table()
    for name in ("a", "b"):
        write_gallery(tmp_path / name / "g", "G", table, [GalleryRun("saga", queries(table, 0))])
        rows = leaderboard(study(), "demo")
        curve = CurveRun("saga", [{"step": 1, "loss/metric": 1.0}, {"step": 2, "loss/metric": 0.5}])
        write_demo_page(tmp_path / name / "p", "Demo", rows, curves=[curve], pairs=[judged_pair()])
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) > 10


def test_a_gallery_goes_to_any_storage(tmp_path: Path) -> None:
    table = image_table()
    storage = Storage.open(tmp_path.as_uri()).child("gallery")
    where = write_gallery(storage, "G", table, [GalleryRun("saga", queries(table, 0))])
    assert where.endswith("/gallery/index.html") and (tmp_path / "gallery" / "index.html").is_file()


def judged_pair(text: str | None = None, num_answers: int = 3) -> JudgedPair:
    said = {
        "bird_1": {"bill_shape": "cone", "leg": "red"},
        "bird_2": {"bill_shape": "dagger", "leg": "red"},
        "same": "no",
    }
    answer = JudgedAnswer(json.dumps(said) if text is None else text, 0, 1.0)
    others = tuple(JudgedAnswer("{}", 1, 0.0) for _ in range(num_answers - 1))
    pictures = (np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 200, np.uint8))
    return JudgedPair(pictures, ("owl", ATTACK), False, (answer, *others), (np.arange(4.0), np.ones(4)), (2, 2))


def test_the_demo_page_shows_board_curves_links_pairs_and_commands(tmp_path: Path) -> None:
    curve = CurveRun("saga", [{"step": 1, "loss/metric": 1.0}])
    where = write_demo_page(
        tmp_path,
        f"Demo {ATTACK}",
        leaderboard(study(), "demo"),
        summary="Three methods.",
        curves=[curve, CurveRun("pretrained", [])],
        links=[Link("hardest queries", "gallery/index.html")],
        pairs=[judged_pair(), judged_pair(ATTACK, num_answers=1)],
        commands=[("Another seed:", "saga-ray train demo --seed 1")],
    )
    page = _Page(where)
    assert "script" not in page.tags and page.text.count(ATTACK) >= 3
    assert page.links == ["gallery/index.html"] and "saga-ray train demo --seed 1" in page.text
    for words in (
        "potential-field",
        "1 of 3 answers right",
        "bill shape",
        "dagger",
        "different classes",
        "Three methods.",
    ):
        assert words in page.text
    assert all((tmp_path / image["src"]).is_file() and image["alt"] for image in page.images)
    assert {"recall.svg", "curves.svg"} < {image["src"] for image in page.images}
    assert {"recall.png", "curves.png", "pairs/01-2-attention.png"} < set(files(tmp_path))


def test_a_demo_page_of_nothing_says_so(tmp_path: Path) -> None:
    page = _Page(write_demo_page(tmp_path, "Demo", []))
    assert "No results yet." in page.text and page.images == []


def test_a_link_out_of_the_folder_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_demo_page(tmp_path, "Demo", [], links=[Link("x", "javascript:alert(1)")])


@pytest.mark.parametrize(
    "text", ["", "no json", "{", '{"a": 1}', '{"a_1": "x", "a_2": {}}', "[" * 5000, '{"a_1": {"x": 1}']
)
def test_answers_of_another_form_are_shown_as_written(text: str) -> None:
    assert described(text) == []


def test_descriptions_are_put_side_by_side() -> None:
    text = 'Sure: {"bird_1": {"leg_color": "red"}, "bird_2": {"leg_color": "blue", "bill": ["a"]}, "same": "no"} done'
    assert described(text) == [("leg color", "red", "blue"), ("bill", "-", "['a']")]


def test_a_template_that_misses_a_value_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render_template("leaderboard.html", title="x")
