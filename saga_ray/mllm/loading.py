"""From a folder or a pinned hub id to a `FrozenMLLM`; safetensors only, nothing of the checkpoint is executed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

from saga_ray.config import MLLMConfig
from saga_ray.mllm.attention import install
from saga_ray.mllm.exact import exact_float64
from saga_ray.mllm.families import refusal_of
from saga_ray.mllm.frozen import FrozenMLLM
from saga_ray.mllm.fused import fuse
from saga_ray.mllm.two_part import can_be_split
from saga_ray.model_folder import ELSEWHERE, first_line, model_folder

_NEEDED = {
    "a tokenizer": ("tokenizer.json",),
    "a processor": ("preprocessor_config.json", "processor_config.json"),
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a usable MLLM, before anything large is read.

    Raises:
        ValueError: what is missing or not supported.
    """
    for what, names in _NEEDED.items():
        if not any((folder / name).is_file() for name in names):
            raise ValueError(
                f"mllm.path: {folder} is not an MLLM folder: {what} ({' or '.join(names)}) is missing; {ELSEWHERE}"
            )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"mllm.path: {folder} holds no *.safetensors; other weight formats are never read, convert them or {ELSEWHERE}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (OSError, UnicodeDecodeError, ValueError, AttributeError):
        raise ValueError(f"mllm.path: {folder / 'config.json'} is not a JSON object; {ELSEWHERE}") from None
    if reason := refusal_of(config):
        raise ValueError(
            f"mllm.path: {folder} holds a model of family '{family}', which is refused: {reason}; {ELSEWHERE}"
        )


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]


def load_mllm(config: MLLMConfig, device: torch.device | None = None) -> FrozenMLLM:
    """Load and freeze the configured MLLM.

    With `mllm.device_map=auto` the library and accelerate spread its layers over all GPUs. Not run with several GPUs:
    only their hooks, around the layers of a small model on one CPU.

    Raises:
        ValueError: one sentence with the folder and what to do.
    """
    folder = model_folder(config.path, config.revision)
    check_folder(folder)
    device = device or choose_device()
    dtype = choose_dtype(config.dtype, device)
    spread = {"device_map": "auto"} if config.device_map == "auto" else {}
    if spread and find_spec("accelerate") is None:
        raise ValueError(
            "mllm.device_map: auto needs the package accelerate; install it (pip install accelerate), or set "
            f"mllm.device_map=one; to go on without, {ELSEWHERE}"
        )
    try:
        with _no_progress_bars():
            processor, tokenizer = _words(folder)
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **spread,
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"mllm.path: {folder} cannot be loaded ({first_line(error)}); {ELSEWHERE}") from error
    # The library fills what is missing with random numbers and only warns.
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(f"mllm.path: {folder} lacks weights, the first is {lacking[0]}; {ELSEWHERE}")
    if not spread:
        model.to(device)
    model.eval().requires_grad_(False)
    if dtype == torch.float64:
        exact_float64(model)
    install(model)
    mllm = FrozenMLLM(model, tokenizer, processor, folder, split=not spread and can_be_split(device, dtype))
    if not spread:
        fuse(mllm, compiled=config.compile and device.type == "cuda")
    return mllm


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an MLLM folder with the chat template that its processor uses.

    Raises:
        OSError, ValueError: from the library, for files that it cannot read.
    """
    return _words(folder)[1]


def _words(folder: Path) -> tuple[ProcessorMixin | None, PreTrainedTokenizerBase]:
    """Processor and tokenizer; some families keep the chat template with the processor alone."""
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer, template = processor.tokenizer, processor.chat_template
    except (ImportError, AttributeError):
        # SmolVLM's processor wants num2words, for videos only; Gemma's and InternVL's want names of tokens, which config.json
        # tells as well. Nothing but the words is needed here.
        processor = None
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        template = _chat_template(folder)
    if not tokenizer.chat_template:
        tokenizer.chat_template = template
    return processor, tokenizer


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8")).get("chat_template")
    return None


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """The library's bars would stand among our own lines."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
