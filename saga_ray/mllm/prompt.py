"""What the MLLM is asked: a template per data set in our own words, or the prompt that an MLLM folder carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_ray.mllm.answers import written_answer
from saga_ray.mllm.marks import ImageMarks
from saga_ray.mllm.vocabulary import checked_vocabulary
from saga_ray.model_folder import OWN_PROMPT
from saga_ray.yaml_text import load_yaml, parse_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARIES = {
    "cub": "birds",
    "inat-aves": "birds",
    "demo": "birds",
    "cars": "cars",
    "aircraft": "aircraft",
    "folder": "generic",
}
"""File under `saga_ray/data/vocabularies` of each data set."""


@dataclass(frozen=True)
class Prompt:
    """A prompt before it meets a tokenizer.

    Example: `Prompt("ornithologist", "bird", {"bill shape": None}, "same_species", "structured")`.
    """

    role: str
    item: str
    attributes: Mapping[str, tuple[str, ...] | None]
    """Names, and the allowed values where they are fixed."""
    verdict_key: str
    variant: str
    texts: tuple[str, str, str] | None = None
    """Verbatim text before image 1, between the images and after image 2; without it the template below is used."""
    max_new_tokens: int | None = None
    """Longest answer that makes sense for this prompt."""
    source: str = field(default="", compare=False)
    """File that it came from."""
    answers: str = "free"
    """`free`, or `template` where keys and punctuation are fed (`saga_ray.mllm.template`)."""
    value_tokens: int = 8
    """Most tokens of a template answer's value whose words are left open."""


def load_prompt(dataset: str, variant: str, mllm_folder: str | Path | None) -> Prompt:
    """The prompt of a data set; an MLLM folder that holds `saga_prompt.yaml` replaces vocabulary and template.

    Raises:
        ValueError: naming file and key, for a prompt file that cannot be used.
    """
    own = Path(mllm_folder) / OWN_PROMPT if mllm_folder is not None else None
    if own is not None and own.is_file():
        return _own_prompt(load_yaml(own), variant, str(own))
    name = f"{VOCABULARIES[dataset]}.yaml"
    # Read as a file of the package: the data package itself is not imported here.
    text = files("saga_ray").joinpath("data", "vocabularies", name).read_text(encoding="utf-8")
    return prompt_from_vocabulary(parse_yaml(text, f"vocabulary {name}"), variant, f"vocabulary {name}")


def prompt_from_vocabulary(vocabulary: Mapping[str, Any], variant: str, source: str = "vocabulary") -> Prompt:
    """A prompt from role, item, verdict key and attributes (`{name: values}` or a list of names)."""
    fields = _common_fields(vocabulary, source)
    return Prompt(**fields, variant=variant, source=source)


def _common_fields(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    for key in ("role", "item", "verdict_key"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise ValueError(f"{source}: {key} is {values.get(key)!r}; give it a word")
    attributes = values.get("attributes")
    if not isinstance(attributes, Mapping | list) or not attributes:
        raise ValueError(f"{source}: attributes is {attributes!r}; list at least one name, with its values or without")
    if isinstance(attributes, Mapping):  # numbers are words here
        attributes = {str(name): tuple(map(str, words)) if words else None for name, words in attributes.items()}
    words = {key: values[key] for key in ("role", "item", "verdict_key")}
    checked = checked_vocabulary({**words, "attributes": attributes}, source)
    return {**words, "attributes": checked.attributes}


def _own_prompt(values: Mapping[str, Any], variant: str, source: str) -> Prompt:
    fields = _common_fields(values, source)
    templates = values.get("templates")
    texts = templates.get(variant) if isinstance(templates, Mapping) else None
    if texts is None and variant == "compact" and isinstance(templates, Mapping):
        raise ValueError(
            f"prompt.variant: the MLLM's own prompt in {source} has no compact form (it has {', '.join(map(str, templates))}); "
            f"set prompt.variant=structured, or write templates.compact there"
        )
    if not isinstance(texts, list) or len(texts) != 3 or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{source}: templates.{variant} is {texts!r}; give three texts: before image 1, between the images, after image 2"
        )
    longest = values.get("max_new_tokens")
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise ValueError(f"{source}: max_new_tokens is {longest!r}; give a whole number of at least 1, or leave it out")
    return Prompt(**fields, variant=variant, texts=tuple(texts), max_new_tokens=longest, source=source)  # type: ignore[arg-type]


def description_keys(prompt: Prompt) -> tuple[str, str]:
    """Keys of both descriptions in an answer."""
    if prompt.variant == "compact":
        return "1", "2"
    item = prompt.item.replace(" ", "_")
    return f"{item}_1", f"{item}_2"


def answer_text(
    prompt: Prompt, first: Mapping[str, str], second: Mapping[str, str], differences: Sequence[str], same: bool
) -> str:
    """A whole answer to a prompt that asks for descriptions, as compact JSON without free words."""
    keys = description_keys(prompt)
    return written_answer(
        keys, first, second, None if prompt.variant == "compact" else differences, prompt.verdict_key, same
    )


def request_text(prompt: Prompt) -> tuple[str, str]:
    """System and user text. All of it stands before the first image, so its keys and values are computed once per run."""
    item, key, asks_all = prompt.item, prompt.verdict_key, prompt.answers == "free"
    question = f'"{key}": "yes" if both photographs show the same kind of {item}, or "no" if they do not'
    if prompt.variant == "generic":
        return "You compare photographs.", (
            f"Two photographs follow. Work out whether they show the same kind of {item}.\n"
            f"Reply with one JSON object and nothing around it. Its keys, in this order:\n"
            f'"differences": what tells the two apart, in a few words;\n'
            + ('"reasoning": one sentence;\n' if asks_all else "")
            + f"{question}."
        )
    lines = "\n".join(
        f"- {name}" + (f" (choose from: {', '.join(values)})" if values else "")
        for name, values in prompt.attributes.items()
    )
    is_compact = prompt.variant == "compact"
    # As it always read, with the item's own spaces; template answers are fed their keys and need them as they are.
    first, second = description_keys(prompt) if is_compact or not asks_all else (f"{item}_1", f"{item}_2")
    more = (
        '"differences": the differences that matter most;\n'
        '"confidence": "high", "medium" or "low";\n'
        '"reasoning": one sentence;\n'
    )
    return f"You are an experienced {prompt.role}.", (
        f"Two photographs follow, each of one {item}. Judge them by these attributes:\n{lines}\n"
        f"Reply with one {'line of compact JSON' if is_compact else 'JSON object'} and nothing around it. Its keys, in this order:\n"
        f'"{first}": an object that gives, for every attribute above, what the first photograph shows, '
        f"in {'one or two' if is_compact else 'a few'} words;\n"
        f'"{second}": the same attributes for the second photograph;\n'
        f"{more if asks_all and not is_compact else ''}{question}."
    )


def request_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The chat messages that a template turns into text."""
    system, user = request_text(prompt)
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": f"{user}\nFirst photograph:\n"},
                {"type": "image"},
                {"type": "text", "text": "\nSecond photograph:\n"},
                {"type": "image"},
                {"type": "text", "text": "\nNow write the JSON object."},
            ],
        },
    ]


def prompt_texts(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, marks: ImageMarks) -> tuple[str, str, str]:
    """Text before image 1, between the images and after image 2, chat template applied, placeholders left out.

    Args:
        marks: What the family's template writes for an image, and what its processor puts around it.

    Raises:
        ValueError: for a tokenizer without a chat template, or one that drops the images.
    """
    if prompt.texts is not None:
        return prompt.texts
    if not tokenizer.chat_template:
        raise ValueError(
            f"mllm.path: the tokenizer in {tokenizer.name_or_path} has no chat template; add chat_template.jinja or a {OWN_PROMPT} there"
        )
    rendered = tokenizer.apply_chat_template(request_messages(prompt), tokenize=False, add_generation_prompt=True)
    # Where the tokenizer begins every text with a special token, so does the processor.
    lead = tokenizer.bos_token
    if lead and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] and not rendered.startswith(lead):
        rendered = lead + rendered
    parts = rendered.split(marks.placeholder)
    if len(parts) != 3:
        raise ValueError(
            f"mllm.path: the chat template in {tokenizer.name_or_path} turns two images into {len(parts) - 1} placeholders; "
            f"use the model's own chat template or put a {OWN_PROMPT} there"
        )
    return parts[0] + marks.opening, marks.closing + parts[1] + marks.opening, marks.closing + parts[2]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str, str], image_id: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Ids before image 1, between the images and after image 2, as a processor gets them: the prompt is tokenised whole.

    On its own, a text from its middle would begin with a space in some tokenizers (LLaVA 1.5's).

    Raises:
        ValueError: for texts that hold images themselves, or nothing behind the second one.
    """
    image = tokenizer.convert_ids_to_tokens(image_id)
    ids = tokenizer.encode(image.join(texts), add_special_tokens=False)
    places = [place for place, token in enumerate(ids) if token == image_id]
    if len(places) != 2:
        raise ValueError("prompt: the texts hold image placeholders; leave them out, they are put between the texts")
    first, second = places
    if second + 1 == len(ids):
        raise ValueError("prompt: the text after the second image is empty; it must hold at least one token")
    return tuple(ids[:first]), tuple(ids[first + 1 : second]), tuple(ids[second + 1 :])
