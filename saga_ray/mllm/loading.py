"""From a folder or a pinned hub id to a `FrozenMLLM`; safetensors only, nothing of the checkpoint is executed."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from saga_ray.config import MLLMConfig
from saga_ray.mllm.attention import install
from saga_ray.mllm.exact import exact_float64
from saga_ray.mllm.frozen import FrozenMLLM

FAMILIES = ("qwen3_vl",)
_ELSEWHERE = "name a local folder with --set mllm.path=DIR, or use --recipe demo"
_NEEDED = {
    "config.json": ("config.json",),
    "a tokenizer": ("tokenizer.json",),
    "a processor": ("preprocessor_config.json", "processor_config.json"),
}


def resolve_folder(config: MLLMConfig) -> Path:
    """The local folder of the configured MLLM; a hub id is fetched at its pinned revision.

    Raises:
        ValueError: what is missing and what to do.
    """
    if config.path is None:
        folder = Path(str(files("saga_ray").joinpath("mllm", "demo", "weights")))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"mllm.path: the bundled demo model is not in {folder}; make it with `python -m saga_ray.mllm.demo.make`"
            )
        return folder
    folder = Path(config.path).expanduser()
    if folder.exists():
        return folder
    looks_like_id = config.path.count("/") == 1 and not config.path.startswith((".", "/", "~"))
    if not looks_like_id:
        raise ValueError(f"mllm.path: {config.path} does not exist; {_ELSEWHERE}")
    if config.revision is None:
        raise ValueError(
            f"mllm.revision: missing for the hub model {config.path}; pin its commit with --set mllm.revision=COMMIT, or {_ELSEWHERE}"
        )
    return _snapshot(config.path, config.revision)


def _snapshot(repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # No pickles, no code: what is not fetched cannot be run.
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "saga_prompt.yaml"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ValueError(f"mllm.path: {repo} is neither a folder nor a hub id ({error}); {_ELSEWHERE}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"mllm.path: the hub model {repo} at {revision} cannot be reached ({reason}); {_ELSEWHERE}"
        ) from None


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a usable MLLM, before anything large is read.

    Raises:
        ValueError: what is missing or not supported.
    """
    if not folder.is_dir():
        raise ValueError(f"mllm.path: {folder} is not a folder; {_ELSEWHERE}")
    for what, names in _NEEDED.items():
        if not any((folder / name).is_file() for name in names):
            raise ValueError(
                f"mllm.path: {folder} is not an MLLM folder: {what} ({' or '.join(names)}) is missing; {_ELSEWHERE}"
            )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"mllm.path: {folder} holds no *.safetensors; other weight formats are never read, convert them or {_ELSEWHERE}"
        )
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, UnicodeDecodeError, ValueError, AttributeError):
        raise ValueError(f"mllm.path: {folder / 'config.json'} is not a JSON object; {_ELSEWHERE}") from None
    if family not in FAMILIES:
        raise ValueError(
            f"mllm.path: {folder} holds a model of family '{family}', supported is {', '.join(FAMILIES)}: only there the "
            f"tokens' gradient was shown to be exact; {_ELSEWHERE}"
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

    Raises:
        ValueError: one sentence with the folder and what to do.
    """
    folder = resolve_folder(config)
    check_folder(folder)
    device = device or choose_device()
    dtype = choose_dtype(config.dtype, device)
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"mllm.path: {folder} cannot be loaded ({reason}); {_ELSEWHERE}") from error
    model.to(device).eval().requires_grad_(False)
    if dtype == torch.float64:
        exact_float64(model)
    install(model)
    return FrozenMLLM(model=model, tokenizer=processor.tokenizer, processor=processor, folder=folder)
