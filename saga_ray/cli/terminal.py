"""What is printed while a run goes on: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

EVERY_S = 5.0
"""Seconds between two lines where there is no terminal."""


def say(text: str = "") -> None:
    """A line for people, on standard error, never wrapped."""
    print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A line of the result, on standard output."""
    print(text, flush=True)


def print_json(value: Any) -> None:
    """The result as JSON, alone on standard output."""
    result(json.dumps(value, indent=2, allow_nan=False, default=str))


def shell_quoted(*words: str) -> str:
    """Words as they can be typed again."""
    import shlex

    return " ".join(shlex.quote(word) for word in words)


class Lines:
    """Progress as plain lines: for jobs, files and CI."""

    def __init__(self, stream: TextIO, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._began = self._stage_began = clock()
        self._last = -every_s
        self._pace = Pace(clock)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, place: TracebackType | None) -> None:
        return None

    def stage(self, text: str) -> None:
        """A new stage begins."""
        self._stage_began = self._clock()
        print(f"[{self._stage_began - self._began:5.0f} s] {text} ...", file=self._stream, flush=True)
        self._pace = Pace(self._clock)

    def part(self, done: int, of: int) -> None:
        """So many images of the stage are done; a stage that is short, and the end of one, needs no line."""
        left_s = self._pace.seconds_left(done, of)
        if done < of and self._clock() - max(self._last, self._stage_began) >= self._every_s:
            self._line(f"{done} of {of} images", left_s)

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float | str]) -> None:
        """A step is done."""
        left_s = self._pace.seconds_left(step, num_steps)
        if step == num_steps or self._clock() - self._last >= self._every_s:
            told = f": {text}" if (text := summary(metrics)) else ""
            self._line(f"step {step}/{num_steps}{told}", left_s)

    def _line(self, text: str, left_s: float | None) -> None:
        self._last = self._clock()
        left = "" if left_s is None else f", about {left_s:.0f} s left"
        print(f"[{self._last - self._began:5.0f} s] {text}{left}", file=self._stream, flush=True)


class Bar:
    """Progress as a moving bar, for terminals."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}", markup=False),
            TextColumn("{task.fields[summary]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=Console(file=stream),
        )
        self._task: Any = None
        self._pace = Pace()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, place: TracebackType | None) -> None:
        self._finish_stage()
        self._progress.stop()

    def stage(self, text: str) -> None:
        """A new stage begins."""
        self._finish_stage()
        self._pace = Pace()
        self._task = self._progress.add_task(text, total=None, steps="", summary="", left="")

    def part(self, done: int, of: int) -> None:
        """So many images of the stage are done."""
        self._draw(done, of, "")

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float | str]) -> None:
        """A step is done."""
        self._draw(step, num_steps, summary(metrics))

    def _draw(self, done: int, of: int, told: str) -> None:
        if self._task is None:
            self.stage("training")
        left_s = self._pace.seconds_left(done, of)
        left = "" if left_s is None else f"{left_s:.0f} s left"
        self._progress.update(self._task, total=of, completed=done, steps=f"{done}/{of}", summary=told, left=left)

    def _finish_stage(self) -> None:
        if self._task is None:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        total = task.total or 1
        self._progress.update(self._task, total=total, completed=total if task.total is None else task.completed)
        self._progress.stop_task(self._task)
        self._task = None


class Pace:
    """How long the remaining steps will take, judged by those seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def seconds_left(self, step: int, num_steps: int) -> float | None:
        """None until two steps were seen."""
        now = self._clock()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        first_step, first_s = self._first
        return (now - first_s) / (step - first_step) * (num_steps - step)


def summary(metrics: Mapping[str, float | str]) -> str:
    """The few numbers that say whether a run goes well."""
    shown = (("loss/total", "loss", ".3f"), ("reward/mean", "reward", ".2f"), ("validation/verdict", "verdicts", ".2f"))
    words = [f"{name} {metrics[key]:{form}}" for key, name, form in shown if isinstance(metrics.get(key), (int, float))]
    return "  ".join(words)


def progress(stream: TextIO | None = None) -> Bar | Lines:
    """What fits the stream (standard error): a bar on a terminal, lines elsewhere and in CI."""
    stream = stream or sys.stderr
    return Bar(stream) if stream.isatty() and not os.environ.get("CI") else Lines(stream)


def scores_line(scores: Mapping[str, float]) -> str:
    """Scores in percent, in one line; always in the same order."""
    from saga_ray.leaderboard.board import score_order

    return "  ".join(f"{name} {100 * scores[name]:.1f}" for name in sorted(scores, key=score_order))
