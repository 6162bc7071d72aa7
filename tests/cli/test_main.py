"""The frame of the command line: help, exit codes, what is said when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from saga_ray.cli import main as main_module
from saga_ray.cli.main import VERBS, run
from tests.cli.conftest import Outcome


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command("doctor")
    def broken() -> None:
        raise error

    monkeypatch.setattr("saga_ray.cli.doctor.command", broken)


def test_help_names_every_verb(type_: Callable[..., Outcome]) -> None:
    shown = type_("--help")
    assert shown.code == 0
    assert all(verb in shown.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(type_: Callable[..., Outcome], verb: str) -> None:
    shown = type_(verb, "--help")
    assert shown.code == 0
    assert shown.out.startswith(f"Usage: saga-ray {verb}")


def test_the_version_is_that_of_the_package(type_: Callable[..., Outcome]) -> None:
    import saga_ray

    assert saga_ray.__version__ in type_("--version").out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian", "demo"], "verb 'trian' is unknown; did you mean 'train'?"),
        (["train", "demo", "--stepz", "3"], "'--steps'"),
        (["train"], "Expected one data set"),
        (["train", "demo", "cub"], "got demo, cub"),
        (["train", "demo", "--steps", "many"], "'many' is not a valid integer"),
        (["leaderboard", "demo", "--format", "xml"], "'xml' is not one of"),
        (["data", "lst"], "'list'"),
    ],
)
def test_wrong_words_are_named_with_the_nearest_right_one(
    type_: Callable[..., Outcome], words: list[str], sentence: str
) -> None:
    said = type_(*words)
    assert said.code == 2
    assert sentence in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def test_our_sentence_is_not_wrapped_and_has_no_traceback(
    type_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "some.key: " + "a very long sentence " * 30
    error = ValueError(sentence)  # without frames, as one that came from a worker
    fails_with(monkeypatch, error)
    monkeypatch.setattr(main_module, "is_ours", lambda error: True)
    said = type_("doctor")
    assert (said.code, said.err) == (2, sentence + "\n")


def test_debug_shows_where_an_error_comes_from(type_: Callable[..., Outcome]) -> None:
    said = type_("train", "demo", "--method", "nothing", "--debug")
    assert said.code == 2
    assert "Traceback" in said.err and "ConfigError" in said.err


def test_an_error_of_a_library_keeps_its_traceback(
    type_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(monkeypatch, ValueError("shapes do not match"))  # raised in this file, outside the package
    said = type_("doctor")
    assert said.code == 1
    assert "Traceback" in said.err


def test_a_full_disk_is_a_sentence(type_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(monkeypatch, OSError(28, "No space left on device", "runs/x"))
    said = type_("doctor")
    assert said.code == 1
    assert said.err.startswith("runs/x: no space left on the device")


def test_ctrl_c_exits_130(type_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(monkeypatch, KeyboardInterrupt())
    said = type_("doctor")
    told = "Interrupted; the same command goes on from the last checkpoint, if there is one."
    assert (said.code, said.err.strip()) == (130, told)


def test_a_reader_that_leaves_is_no_error() -> None:
    # The schema is longer than a pipe's buffer: head is gone before all of it is written.
    command = f"{sys.executable} -m saga_ray config schema | head -c 1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert (ended.stdout, ended.stderr) == ("{", "")


def test_letters_that_a_terminal_cannot_show_are_replaced() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "saga_ray", "train", "d\u00e9mo"],
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"data set 'd?mo' is unknown")


def test_a_second_run_in_one_process_works(type_: Callable[..., Outcome]) -> None:
    assert run(["--version"]) == run(["--version"]) == 0
