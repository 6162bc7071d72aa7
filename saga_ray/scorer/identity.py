"""Whether a scorer elsewhere is the one that a run means: the same weights, prompt and code, told by their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from saga_ray.config import RunConfig
from saga_ray.mllm.frozen import weights_hash
from saga_ray.mllm.loading import check_folder, load_tokenizer
from saga_ray.mllm.prompt import Prompt
from saga_ray.model_folder import model_folder
from saga_ray.scorer.engine import code_hash, prompt_hash
from saga_ray.scorer.length import prompt_words
from saga_ray.scorer.prompt import longest_answer, prompt_in

_WHAT = {
    "weights": "holds other weights, tokens or settings than mllm.path",
    "prompt": "asks another prompt than this run",
    "code": "runs another version of saga-ray's scorer than this process",
}
_CHANGED = {
    "weights": "other weights, tokens or settings",
    "prompt": "another prompt",
    "code": "another version of saga-ray's scorer",
    "dtype": "another dtype",
}


def expected_identity(config: RunConfig) -> dict[str, str]:
    """Hashes of what a run would load itself; no weights are loaded.

    Raises:
        ValueError: as `run_prompt`.
    """
    folder = model_folder(config.mllm.path, config.mllm.revision)
    check_folder(folder)
    prompt = prompt_in(config, folder)
    asked = prompt_hash(prompt, _texts(prompt, folder), longest_answer(prompt, config))
    return {"weights": weights_hash(folder), "prompt": asked, "code": code_hash()}


def _texts(prompt: Prompt, folder: Path) -> tuple[str, str, str]:
    if prompt.texts is not None:  # given word by word: no chat template is needed
        return prompt.texts
    return prompt_words(prompt, folder, load_tokenizer(folder)).texts


def check_identity(told: Mapping[str, str], config: RunConfig, where: str) -> None:
    """Refuse a scorer whose numbers would be others than the run's own.

    Args:
        told: its `describe()`.
        where: what to call it.

    Raises:
        ValueError: what differs, and what to do.
    """
    advice = "start one for this run (`saga-ray serve`), or leave scorer.service out so that the run starts its own"
    expected = expected_identity(config)
    for key, what in _WHAT.items():
        if told[key] != expected[key]:
            raise ValueError(f"scorer.service: {where} {what} ({key} {told[key]}, not {expected[key]}); {advice}")
    if config.mllm.dtype not in ("auto", told["dtype"]):
        raise ValueError(
            f"scorer.service: {where} computes in {told['dtype']}, not in mllm.dtype={config.mllm.dtype}; {advice}"
        )


def check_unchanged(told: Mapping[str, str], began: Mapping[str, str], where: str) -> None:
    """Refuse a reply of another scorer than the one that a run began with.

    Args:
        told: the `describe()` that came with the reply; may lack keys.
        began: the one that `check_identity` has passed.
        where: what to call the scorer.

    Raises:
        ValueError: what differs, and what to do.
    """
    for key, what in _CHANGED.items():
        if told.get(key) != began[key]:
            raise ValueError(
                f"scorer.service: {where} has answered with {what} than this run began with ({key} {told.get(key)}, not "
                f"{began[key]}); the run stopped at its last checkpoint. Start the service again as it was, and type the same "
                f"command to go on from there"
            )
