"""`saga-ray prompt`: what the MLLM is asked, word by word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from saga_ray.cli.options import DATASET_HELP, RECIPE, SET, configuration, split_words
from saga_ray.cli.terminal import result, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saga_ray.config import RunConfig
    from saga_ray.mllm.prompt import Prompt
    from saga_ray.scorer.length import PromptWords


@click.group("prompt")
def command() -> None:
    """Show what the MLLM is asked, word by word."""


@command.command("show")
@click.argument("words", nargs=-1, metavar="DATASET")
@RECIPE
@SET
def show(words: tuple[str, ...], recipe: str | None, assignments: tuple[str, ...]) -> None:
    """Print the prompt of DATASET exactly as the MLLM reads it, with <image 1> and <image 2> where the pictures stand.

    How many tokens each part has, and an answer, is said on standard error.

    Where the MLLM's own files cannot be had, the text is shown without its chat template, and a note says so.
    """
    name, more = split_words(words, f"data set ({DATASET_HELP})")
    assignments = (*assignments, *more)
    # The prompt needs no images, so the folder's name does not matter.
    root = None if name == "demo" or any(word.startswith("data.root=") for word in assignments) else "."
    config = configuration(name, recipe=recipe, assignments=assignments, shortcuts={"data.root": root})
    from saga_ray.mllm.prompt import request_text
    from saga_ray.model_folder import model_folder
    from saga_ray.scorer.prompt import prompt_in

    try:
        folder = model_folder(config.mllm.path, config.mllm.revision)
    except ValueError as error:
        prompt = prompt_in(config, None)  # what is wrong with the vocabulary comes first
        say(f"{error}. Until then shown without the model's chat template, and tokens are not counted:")
        result("\n\n".join([*request_text(prompt), "<image 1>", "<image 2>"]))
        return
    prompt = prompt_in(config, folder)
    from saga_ray.mllm.loading import check_folder, load_tokenizer
    from saga_ray.scorer.length import prompt_words

    check_folder(folder)
    tokenizer = load_tokenizer(folder)
    words = prompt_words(prompt, folder, tokenizer)
    before, between, after = words.texts
    say(f"From {prompt.source}:")
    result(f"{before}<image 1>{between}<image 2>{after}")
    for line in _token_counts(prompt, words, tokenizer, config):
        say(line)
    if config.prompt.answers == "template":
        from saga_ray.mllm.template import form_in_tokens

        form = form_in_tokens(prompt, tokenizer, folder)
        say(f"\nAnswers: what stands in <> is drawn, all else is fed:\n{form.with_gaps()}")


def _token_counts(
    prompt: Prompt, words: PromptWords, tokenizer: PreTrainedTokenizerBase, config: RunConfig
) -> Iterator[str]:
    """Tokens of every part of the prompt, and what an answer in form costs."""
    from saga_ray.encoder.build import token_grid
    from saga_ray.mllm.vocabulary import Vocabulary
    from saga_ray.vocab.cost import typical_cost

    try:
        rows, columns = token_grid(config)
        images, unknown = rows * columns + words.num_closing, None
    except ValueError as error:
        images, unknown = 0, str(error)
    counts = words.num_tokens
    names = ("before image 1", "between the images", "after image 2")
    yield ""
    yield f"{sum(counts) + 2 * images:6} tokens in all{'' if images else ' but the images'}, of these"
    yield from (f"{count:6} {name}" for name, count in zip(names, counts, strict=True))
    if unknown is None:
        yield f"{2 * images:6} of the images, {images} each at {config.data.image_size} pixels"
    else:
        yield unknown
    if prompt.variant == "generic":
        return
    vocabulary = Vocabulary(
        role=prompt.role, item=prompt.item, verdict_key=prompt.verdict_key, attributes=dict(prompt.attributes)
    )
    cost = typical_cost(vocabulary, tokenizer)
    if cost is not None:
        yield f"{cost.answer:6.0f} of an answer in form, {cost.description:.0f} of each description:"
        for name, (mean, least, most) in cost.attributes.items():
            yield f"{mean:9.1f} {name}" + (f" ({least} to {most})" if least < most else "")
