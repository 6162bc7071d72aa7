"""Whatever is typed wrongly: one sentence with key or file, the value seen and what to do, exit 2, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome

Type = Callable[..., Outcome]
LOCAL = ("--local", "--method", "pretrained")


def refused(said: Outcome, *parts: str) -> None:
    """Exit 2; the last line holds all parts; no traceback; nothing on standard output; no run folder."""
    assert said.code == 2, said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    for part in parts:
        assert part in said.last_line
    written = {path.name for path in Path("runs").rglob("*") if path.is_file()}
    # A run whose images turn out to be broken has begun; typed again with sound ones, it goes on.
    assert written <= ({"config.yaml", "environment.json"} if "0.png" in parts else set())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "dem"], ["data set 'dem'", "did you mean 'demo'?"]),
        (["train", "demo", "--method", "saga2"], ["method 'saga2'", "did you mean 'saga'?"]),
        (["train", "demo", "--recipe", "papr"], ["recipe 'papr'", "did you mean 'paper'?"]),
        (["train", "demo", "--set", "grpo.advantage=x"], ["'grpo.advantage'; grpo has ", "normalisation"]),
        (["train", "demo", "--set", "grpo.groupsize=3"], ["'grpo.groupsize'", "did you mean 'grpo.group_size'?"]),
        (["train", "demo", "--set", "grpo.group_size=four"], ["grpo.group_size", "'four'", "valid integer"]),
        (["train", "demo", "--set", "grpo.group_size"], ["--set grpo.group_size", "key=value"]),
        (["train", "demo", "--steps", "-1"], ["optim.steps", "-1", "greater than or equal to 0"]),
        (["train", "demo", "--steps", "5", "--set", "optim.steps=6"], ["optim.steps=6", "another option says 5"]),
        (["train", "demo", "--config", "none.yaml"], ["none.yaml", "cannot be read"]),
        (["train", "demo", "--name", "../x"], ["'../x'", "not a run name", "use 1 to 120 letters"]),
        (["train", "demo", "--name", "a/b"], ["'a/b'", "not a run name"]),
        (["train", "demo", "--name", ""], ["''", "not a run name"]),
        (["train", "cub"], ["data.root", "missing", "--data-root DIR"]),
        (["train", "folder", *LOCAL, "--data-root", "nowhere"], ["nowhere"]),
        (["train", "cub", *LOCAL, "--recipe", "demo", "--data-root", "nowhere"], ["nowhere"]),
        (["train", "demo", "--local", "--set", "mllm.path=nowhere"], ["mllm.path", "nowhere", "--set mllm.path=DIR"]),
        (["train", "demo", *LOCAL, "--set", "data.image_size=50"], ["data.image_size", "50", "choose"]),
        (["leaderboard", "dmo"], ["data set 'dmo'", "did you mean 'demo'?"]),
        (["sweep", "none.yaml"], ["none.yaml", "cannot be read"]),
        (["evaluate", "runs/none"], ["runs/none", "not the folder of a finished run"]),
        (["study", "demo", "--methods", "saga,sagga"], ["method 'sagga'", "did you mean 'saga'?"]),
        (["study", "controls", "--data-root", "mine", "--dry-run"], ["--data-root mine", "drawn", "--dataset folder"]),
        (["mllm", "try", "--out", "none/looked.png"], ["--out none/looked.png", "a folder that exists"]),
        (["prompt", "show", "demo", "--set", "prompt.variant=odd"], ["prompt.variant", "'odd'"]),
        (["data", "show", "folder", "--data-root", "nowhere"], ["nowhere"]),
        (["config", "show", "demo", "--set", "a=[1"], ["--set a", "not valid YAML"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(type_: Type, words: list[str], parts: list[str]) -> None:
    refused(type_(*words), *parts)


def test_all_mistakes_are_told_at_once(type_: Type) -> None:
    said = type_("train", "demo", "--method", "x", "--set", "grpo.group_size=1", "a.b=2", "--steps", "-1")
    refused(said)
    assert len(said.err.splitlines()) == 4


def test_an_empty_folder_of_images(type_: Type, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(type_("train", "folder", *LOCAL, "--data-root", "empty"), "data.root", "empty is empty", "--data-root DIR")


def test_images_without_class_folders(type_: Type, pictures: Path) -> None:
    refused(type_("train", "folder", *LOCAL, "--data-root", str(pictures / "class0")), "data.root", "sub-folder")


def test_a_class_with_one_image(type_: Type, pictures: Path) -> None:
    for number in range(1, 4):
        (pictures / "class3" / f"{number}.png").unlink()
    refused(type_("train", "folder", *LOCAL, "--data-root", str(pictures)), "class3", "single image", "add images")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None])
def test_a_broken_image(type_: Type, pictures: Path, content: bytes | None) -> None:
    for folder in sorted(pictures.iterdir()):  # one in every class: no split is without
        path = folder / "0.png"
        path.write_bytes(path.read_bytes()[:100] if content is None else content)
    refused(type_("train", "folder", *LOCAL, "--data-root", str(pictures)), "0.png", "replace or remove")


@pytest.mark.parametrize("runs", ["file", "file/runs", "file://{here}/file"])
def test_a_run_folder_that_cannot_be_written(type_: Type, tmp_path: Path, runs: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for words in (("train", "demo", *LOCAL), ("train", "demo"), ("leaderboard", "demo")):
        refused(type_(*words, "--runs", runs.format(here=tmp_path)), "file is a file", "choose another folder")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_folder_at_an_address_that_nobody_knows(type_: Type) -> None:
    refused(type_("train", "demo", *LOCAL, "--runs", "what://bucket"), "--runs what://bucket", "s3://bucket/path")


def test_an_mllm_folder_that_is_none(type_: Type, tmp_path: Path) -> None:
    from importlib.resources import files

    weights = Path(str(files("saga_ray").joinpath("mllm", "demo", "weights")))
    folder = tmp_path / "mllm"
    folder.mkdir()
    train = ("train", "demo", "--local", "--set", f"mllm.path={folder}")
    refused(type_(*train), "mllm.path", str(folder), "config.json")
    shutil.copy(weights / "config.json", folder)
    refused(type_(*train), "mllm.path", str(folder), "tokenizer.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(weights / name, folder)
    refused(type_(*train), "mllm.path", str(folder), "safetensors")
    (folder / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes()[:1000])
    refused(type_(*train), "mllm.path", str(folder))


def test_a_hub_model_that_cannot_be_reached(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    train = ("train", "demo", "--local", "--set", "mllm.path=nobody/nothing")
    refused(type_(*train), "mllm.revision", "nobody/nothing", "--set mllm.path=DIR")
    said = type_(*train, "mllm.revision=0123456789012345678901234567890123456789")
    refused(said, "mllm.path", "nobody/nothing", "cannot be reached", "--set mllm.path=DIR")


def test_the_mistake_is_told_before_ray_is_started(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", never)
    (tmp_path / "empty").mkdir()
    refused(type_("train", "folder", "--data-root", "empty"), "data.root", "empty")
    refused(type_("train", "demo", "--set", "mllm.path=nowhere"), "mllm.path", "nowhere")
