"""Progress: a line every few seconds where there is no terminal, with the seconds that are left."""

from __future__ import annotations

import io

from saga_ray.cli.terminal import Bar, Lines, Pace, progress, shell_quoted, summary


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_lines_come_every_few_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, every_s=5.0, clock=clock) as shown:
        shown.stage("training")
        for step in range(1, 21):
            clock.now_s += 1.0
            shown.step(step, 20, {"loss/total": 1.5, "reward/mean": 0.25, "note": "text"})
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("training ...")
    assert [line.split()[4].rstrip(":") for line in lines[1:]] == ["1/20", "6/20", "11/20", "16/20", "20/20"]
    assert "loss 1.500  reward 0.25, about 14 s left" in lines[2]


def test_the_images_of_a_long_stage_are_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, every_s=5.0, clock=clock) as shown:
        for stage in ("embedding", "embedding again"):
            shown.stage(stage)
            for done in range(100, 1001, 100):
                clock.now_s += 1.0
                shown.part(done, 1000)
        shown.stage("short")
        clock.now_s += 1.0
        shown.part(10, 1000)
    lines = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    assert lines[:3] == ["embedding ...", "500 of 1000 images, about 5 s left", "embedding again ..."]
    assert len(lines) == 5


def test_the_pace_is_that_of_the_steps_seen() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.seconds_left(51, 100) is None  # resumed: the first 50 steps took no time here
    clock.now_s += 8.0
    assert pace.seconds_left(55, 100) == 90.0


def test_a_bar_survives_stages_without_steps_and_steps_without_a_stage() -> None:
    stream = io.StringIO()
    with Bar(stream) as shown:
        shown.step(1, 2, {"loss/total": 1.0})
        shown.stage("embedding [1600] images")
        shown.part(128, 1600)
        shown.stage("last")
    assert "embedding [1600] images" in stream.getvalue()


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(progress(io.StringIO()), Lines)


def test_numbers_that_are_missing_are_not_shown() -> None:
    assert summary({"loss/total": 2.0}) == "loss 2.000"
    assert summary({}) == ""


def test_words_can_be_typed_again() -> None:
    assert shell_quoted("saga-ray", "--data-root", "my pictures") == "saga-ray --data-root 'my pictures'"
