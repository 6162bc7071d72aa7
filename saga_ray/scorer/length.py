"""How long a run's prompt is and whether an answer fits behind it, known from tokenizer and configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from saga_ray.config import RunConfig
from saga_ray.encoder.build import token_grid
from saga_ray.mllm.families import Family, family_named
from saga_ray.mllm.loading import load_tokenizer
from saga_ray.mllm.prompt import Prompt, prompt_ids, prompt_texts
from saga_ray.model_folder import load_config, model_folder
from saga_ray.scorer.prompt import longest_answer, run_prompt


@dataclass(frozen=True)
class PromptWords:
    """A prompt as its MLLM reads it."""

    texts: tuple[str, str, str]
    """Before image 1, between the images, after image 2."""
    num_tokens: tuple[int, int, int]
    """Of these, without what stands for the images' own tokens."""
    num_closing: int
    """Tokens of an image that the encoder does not give (LLaVA-OneVision's newline)."""
    family: Family
    longest: int | None
    """Positions that the MLLM was made for."""


def prompt_words(prompt: Prompt, folder: Path, tokenizer: PreTrainedTokenizerBase) -> PromptWords:
    """The texts of a prompt and how many tokens they have; no weights are read.

    Raises:
        ValueError: for a prompt or a folder that cannot be used.
    """
    config = load_config(folder)
    family = family_named(config.model_type)
    texts = prompt_texts(prompt, tokenizer, family.marks(config, tokenizer))
    before, between, after = map(len, prompt_ids(tokenizer, texts, config.image_token_id))
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return PromptWords(texts, (before, between, after), len(family.closing_ids(config)), family, longest)


def check_prompt_fits(config: RunConfig) -> None:
    """Refuse a run whose prompt, images and answers are longer than its MLLM reads, before the MLLM is loaded.

    Raises:
        ValueError: the sentence.
    """
    prompt, folder = run_prompt(config), model_folder(config.mllm.path, config.mllm.revision)
    words = prompt_words(prompt, folder, load_tokenizer(folder))
    positions = words.family.num_positions(sum(words.num_tokens) + 2 * words.num_closing, token_grid(config))
    check_length(positions, longest_answer(prompt, config), words.longest, folder)


def check_length(num_positions: int, max_new_tokens: int, longest: int | None, folder: Path) -> None:
    """Positions behind the last one that an MLLM was made for (`max_position_embeddings`) are never used.

    Raises:
        ValueError: for a prompt of so many positions and an answer of so many tokens.
    """
    if longest is not None and num_positions + max_new_tokens > longest:
        raise ValueError(
            f"grpo.max_new_tokens: {max_new_tokens} behind a prompt of {num_positions} positions is longer than the {longest} "
            f"that {folder} was made for (max_position_embeddings); lower it, data.image_size, or shorten the prompt"
        )
