"""The prompt of a run: the data set's own words, the MLLM folder's, or a chosen vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from saga_ray.config import RunConfig
from saga_ray.mllm.loading import check_folder
from saga_ray.mllm.prompt import OWN_PROMPT, Prompt, load_prompt, prompt_from_vocabulary
from saga_ray.mllm.vocabulary import load_vocabulary
from saga_ray.model_folder import model_folder


def prompt_in(config: RunConfig, folder: Path | None, words: bytes | None = None) -> Prompt:
    """The prompt of a run whose MLLM lies in `folder`; None shows what would be asked without knowing the MLLM.

    Args:
        words: content of the vocabulary's file, where another process has read it; None reads the file.

    Raises:
        ValueError: for a vocabulary or a prompt file that cannot be used.
    """
    prompt = _prompt_in(config, folder, words)
    return replace(prompt, answers=config.prompt.answers, value_tokens=config.prompt.value_tokens)


def _prompt_in(config: RunConfig, folder: Path | None, words: bytes | None) -> Prompt:
    name = config.prompt.vocabulary
    if name is None:
        return load_prompt(config.dataset, config.prompt.variant, folder)
    if folder is not None and (folder / OWN_PROMPT).is_file():
        raise ValueError(
            f"prompt.vocabulary: {name} cannot be asked, since the MLLM in {folder} carries its own prompt ({OWN_PROMPT}) and "
            f"reads no other; leave the key out, or name another MLLM with --set mllm.path=DIR"
        )
    vocabulary, source = load_vocabulary(name, config.prompt.vocabulary_digest, words)
    return prompt_from_vocabulary(vocabulary.model_dump(), config.prompt.variant, source)


def run_prompt(config: RunConfig) -> Prompt:
    """The prompt of a run, without loading any weights.

    Raises:
        ValueError: for an MLLM folder, a vocabulary or a prompt file that cannot be used.
    """
    folder = model_folder(config.mllm.path, config.mllm.revision)
    check_folder(folder)
    return prompt_in(config, folder)


def longest_answer(prompt: Prompt, config: RunConfig) -> int:
    """Tokens after which an answer is cut."""
    return min(config.grpo.max_new_tokens, prompt.max_new_tokens or config.grpo.max_new_tokens)
