import io

import numpy as np
import pytest
from PIL import Image

from saga_ray.leaderboard.board import leaderboard
from saga_ray.leaderboard.figures import save_figure, to_png, to_svg
from saga_ray.leaderboard.plots import (
    CurveRun,
    attention_figure,
    attention_overlay,
    read_metrics,
    recall_bars,
    running_mean,
    training_curves,
)
from tests.leaderboard.rows import HOSTILE, make_result, study


def lines(num_steps: int = 60, saga: bool = True) -> list[dict[str, float]]:
    out = []
    for step in range(1, num_steps + 1):
        line = {"step": step, "loss/metric": 4 / step}
        if saga:
            line |= {"reward/mean": 0.5, "gradient/metric": 1.0, "gradient/grpo": 0.1, "gradient/cosine": 0.05}
        out.append(line)
    return out


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_curves_show_the_panels_that_have_data() -> None:
    figure = training_curves([CurveRun("potential-field", lines(saga=False)), CurveRun("saga", lines())])
    assert titles(figure) == [
        "Metric loss",
        "Mean reward",
        "Gradient norm at the tokens",
        "Cosine, GRPO and metric gradient",
    ]
    faint, mean = figure.axes[0].lines[:2]
    assert faint.get_ydata()[1] == 2.0 and mean.get_ydata()[1] == pytest.approx((4 + 2) / 2)


def test_steps_without_a_number_are_left_out() -> None:
    values = [*lines(3), {"step": 4, "loss/metric": None}, {"step": 5, "loss/metric": float("nan")}, {"epoch": 1}]
    figure = training_curves([CurveRun("saga", values)])
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3]


def test_runs_without_steps_still_give_a_picture() -> None:
    assert to_png(training_curves([CurveRun("pretrained", [])])).startswith(b"\x89PNG")


def test_running_mean_looks_back_only() -> None:
    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize("make", [to_png, to_svg])
def test_equal_data_give_equal_bytes(make) -> None:
    rows = leaderboard(study(), "demo")
    assert make(recall_bars(rows)) == make(recall_bars(rows))
    first, second = (make(training_curves([CurveRun("saga", lines())])) for _ in range(2))
    assert first == second


def test_somebodys_matplotlib_settings_change_nothing() -> None:
    import matplotlib

    rows = leaderboard(study(), "demo")
    before = to_svg(recall_bars(rows))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        assert to_svg(recall_bars(rows)) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_bars_are_the_means_with_their_intervals() -> None:
    rows = leaderboard(study(), "demo")
    (axes,) = recall_bars(rows).axes
    assert [bar.get_width() for bar in axes.patches] == [100 * row.scores["recall@1"] for row in rows]
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    assert drawn == [tuple(100 * end for end in row.intervals["recall@1"]) for row in rows]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["saga", "potential-field", "pretrained"]


def test_names_are_drawn_as_they_are() -> None:
    label = r"saga ($\frac{1}{0}$)"
    rows = leaderboard([make_result([5, 5], label=label), make_result([6, 6], label=HOSTILE)], "demo")
    assert to_svg(recall_bars(rows)).startswith(b"<?xml")
    assert label in [text.get_text() for text in recall_bars(rows).axes[0].get_yticklabels()]


def test_both_files_are_written(tmp_path) -> None:
    save_figure(training_curves([CurveRun("saga", lines())]), tmp_path, "plots/curves")
    assert Image.open(tmp_path / "plots/curves.png").width > 1000
    svg = (tmp_path / "plots/curves.svg").read_text()
    assert "<svg" in svg and "<script" not in svg


def test_metrics_are_read_up_to_a_line_that_is_being_written() -> None:
    assert read_metrics(b'{"step": 1}\n{"step": 2}\n{"st') == [{"step": 1}, {"step": 2}]
    assert read_metrics(b"") == []
    with pytest.raises(ValueError, match="line 1"):
        read_metrics(b'{"st\n{"step": 2}\n')


def test_an_overlay_is_bright_where_attention_was() -> None:
    map_T = np.zeros(16)
    map_T[5] = 1.0  # row 1, column 1 of 4 x 4
    overlay_HWC = attention_overlay(np.full((64, 64, 3), 120, np.uint8), map_T, (4, 4), size=128)
    assert overlay_HWC.shape == (128, 128, 3) and overlay_HWC.dtype == np.uint8
    brightness = overlay_HWC.reshape(4, 32, 4, 32, 3).mean(axis=(1, 3, 4))
    assert np.unravel_index(brightness.argmax(), (4, 4)) == (1, 1)


def test_even_attention_is_no_error() -> None:
    attention_overlay(np.zeros((8, 8, 3), np.uint8), np.full(4, 0.25), (2, 2))


def test_a_pair_is_drawn_with_its_answer() -> None:
    images = (np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8))
    figure = attention_figure(images, (np.ones(4), np.arange(4.0)), (2, 2), '{"same":"no"} $x$' + HOSTILE)
    assert Image.open(io.BytesIO(to_png(figure))).height > 300 and len(figure.axes) == 4
