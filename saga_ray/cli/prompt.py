"""`saga-ray prompt`: what the MLLM is asked, word by word."""

from __future__ import annotations

import click

from saga_ray.cli.options import DATASET_HELP, RECIPE, SET, configuration, split_words
from saga_ray.cli.terminal import result, say


@click.group("prompt")
def command() -> None:
    """Show what the MLLM is asked, word by word."""


@command.command("show")
@click.argument("words", nargs=-1, metavar="DATASET")
@RECIPE
@SET
def show(words: tuple[str, ...], recipe: str | None, assignments: tuple[str, ...]) -> None:
    """Print the prompt of DATASET exactly as the MLLM reads it, with <image 1> and <image 2> where the pictures stand.

    Where the MLLM's own files cannot be had, the text is shown without its chat template, and a note says so.
    """
    name, more = split_words(words, f"data set ({DATASET_HELP})")
    assignments = (*assignments, *more)
    # The prompt needs no images, so the folder's name does not matter.
    root = None if name == "demo" or any(word.startswith("data.root=") for word in assignments) else "."
    config = configuration(name, recipe=recipe, assignments=assignments, shortcuts={"data.root": root})
    from saga_ray.mllm.loading import resolve_folder
    from saga_ray.mllm.prompt import prompt_texts, request_text
    from saga_ray.scorer.prompt import prompt_in

    try:
        folder = resolve_folder(config.mllm)
    except ValueError as error:
        say(f"{error}. Shown without the model's chat template:")
        prompt = prompt_in(config, None)
        result("\n\n".join([*request_text(prompt), "<image 1>", "<image 2>"]))
        return
    prompt = prompt_in(config, folder)
    if prompt.texts is None:
        from saga_ray.mllm.loading import check_folder, load_family, load_tokenizer

        check_folder(folder)
        tokenizer = load_tokenizer(folder)
        texts = prompt_texts(prompt, tokenizer, load_family(folder).marks(tokenizer))
    else:
        texts = prompt.texts
    before, between, after = texts
    say(f"From {prompt.source}:")
    result(f"{before}<image 1>{between}<image 2>{after}")
