"""From `mllm.path` to a folder on disk: as it is, the bundled one, or a hub's at a pinned commit. No weights are read."""

from __future__ import annotations

import contextlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OWN_PROMPT = "saga_prompt.yaml"
"""File of a folder that brings its own vocabulary and template."""
ELSEWHERE = "name a local folder with --set mllm.path=DIR"
HUB_TIMEOUT_S = 10.0


def model_folder(path: str | None, revision: str | None = None) -> Path:
    """The folder of an MLLM; None is the bundled demo model.

    Raises:
        ValueError: what is missing and what to do.
    """
    if path is None:
        folder = Path(str(files("saga_ray").joinpath("mllm", "demo", "weights")))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"mllm.path: the bundled demo model is not in {folder}; make it with `python -m saga_ray.mllm.demo.make`"
            )
        return folder
    folder = Path(path).expanduser()
    if not folder.exists():
        folder = _fetched(path, revision)
    if not folder.is_dir():
        raise ValueError(f"mllm.path: {folder} is not a folder; {ELSEWHERE}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"mllm.path: {folder} is not an MLLM folder: config.json is missing; {ELSEWHERE}")
    return folder


def load_config(folder: Path) -> PreTrainedConfig:
    """The library's configuration of a folder.

    Raises:
        OSError, ValueError: from the library, for one that it cannot read.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def first_line(error: Exception) -> str:
    """What an error of a library says, in so far as it fits into a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _fetched(repo: str, revision: str | None) -> Path:
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ValueError(f"mllm.path: {repo} does not exist; {ELSEWHERE}")
    if revision is None:
        raise ValueError(
            f"mllm.revision: missing for the hub model {repo}; pin its commit with --set mllm.revision=COMMIT, or {ELSEWHERE}"
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    # No pickles, no code: what is not fetched cannot be run.
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", OWN_PROMPT]
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            # A pinned commit never changes: once fetched, the hub is not asked again.
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        # One question first: the download itself would try again for a minute before it gives up.
        HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise ValueError(f"mllm.path: {repo} is neither a folder nor a hub id; {ELSEWHERE}") from None
    except (HTTPError, OSError) as error:
        reason = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in str(error) else first_line(error)
        raise ValueError(
            f"mllm.path: the hub model {repo} at {revision} cannot be reached ({reason}); {ELSEWHERE}"
        ) from None
