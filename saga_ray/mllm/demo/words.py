"""What the demo MLLM says: its tokens, its answers and its prompt, all derived from the ten attributes.

An answer is compact JSON. Punctuation is folded into the tokens of keys, so a value is one token, a key is one token, and
the longest answer has 48 tokens with its end.
"""

import json

import numpy as np

from saga_ray.data.demo.birds import ATTRIBUTES, NAMES

MAX_WRITTEN_DIFFERENCES = 4
"""Differences are listed in the order of the attributes and end here."""
SAME_AT_MOST = 2
"""The verdict is "yes" if at most this many differences are written (m; neighbouring classes differ in 2m)."""

PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO, UNKNOWN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|unknown|>",
)
SPECIAL = (PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO, UNKNOWN)

BIRD_1, BIRD_2 = "Bird 1: ", "Bird 2: "
ASK_STRUCTURED, ASK_GENERIC = "Describe both birds, then compare them.", "Compare the two birds."
VERDICT_KEY = "same_species"

OPEN_1 = f'{{"bird_1":{{"{NAMES[0]}":"'
OPEN_2 = f'"}},"bird_2":{{"{NAMES[0]}":"'
KEYS = tuple(f'","{name}":"' for name in NAMES[1:])
DIFFERENCES = '"},"differences":['
DIFFERENCES_ONLY = '{"differences":['
FIRST_ITEM = tuple(f'"{name}"' for name in NAMES)
NEXT_ITEM = tuple(f',"{name}"' for name in NAMES[1:])
VERDICT = f'],"{VERDICT_KEY}":"'
YES, NO = 'yes"}', 'no"}'
VALUES = tuple(dict.fromkeys(value for values in ATTRIBUTES.values() for value in values))

TOKENS = (
    *SPECIAL,
    *(BIRD_1, BIRD_2, ASK_STRUCTURED, ASK_GENERIC),
    *(OPEN_1, OPEN_2, *KEYS, DIFFERENCES, DIFFERENCES_ONLY, *FIRST_ITEM, *NEXT_ITEM, VERDICT, YES, NO),
    *VALUES,
)
TOKEN_ID = {token: number for number, token in enumerate(TOKENS)}

NUM_ATTRIBUTES = len(NAMES)
VALUE_IDS = tuple(np.array([TOKEN_ID[value] for value in values]) for values in ATTRIBUTES.values())
"""For each attribute the token ids of its values."""
MAX_ANSWER_TOKENS = 4 * NUM_ATTRIBUTES + 1 + MAX_WRITTEN_DIFFERENCES + 3
VALUE_POSITIONS = np.concatenate(
    [2 * np.arange(NUM_ATTRIBUTES) + 1, 2 * NUM_ATTRIBUTES + 2 * np.arange(NUM_ATTRIBUTES) + 1]
)
"""Where the twenty value tokens stand in a structured answer, first bird first."""

PROMPTS = {
    variant: (
        f"{START}{BIRD_1}{VISION_START}",
        f"{VISION_END}{BIRD_2}{VISION_START}",
        f"{VISION_END}{ask}{END}{START}",
    )
    for variant, ask in (("structured", ASK_STRUCTURED), ("generic", ASK_GENERIC))
}
"""Text before the first image, between the two, and after the second."""


def prompt_document() -> dict:
    """What `saga_prompt.yaml` of the folder holds: it replaces vocabulary and template of the data set."""
    return {
        "role": "ornithologist",
        "item": "bird",
        "verdict_key": VERDICT_KEY,
        "attributes": {name: list(values) for name, values in ATTRIBUTES.items()},
        "max_new_tokens": MAX_ANSWER_TOKENS,
        "templates": {variant: list(texts) for variant, texts in PROMPTS.items()},
    }


def written_differences(first: np.ndarray, second: np.ndarray) -> list[int]:
    """Attributes in which two descriptions differ, in order, at most `MAX_WRITTEN_DIFFERENCES` of them."""
    return np.flatnonzero(np.asarray(first) != np.asarray(second))[:MAX_WRITTEN_DIFFERENCES].tolist()


def answer_tokens(first: np.ndarray, second: np.ndarray, *, generic: bool = False) -> list[str]:
    """The tokens of the answer about two birds, ending with `END`.

    Args:
        first, second: (10,) value indices that are written down.
        generic: only differences and verdict.
    """
    tokens: list[str] = []
    if not generic:
        for opening, vector in ((OPEN_1, first), (OPEN_2, second)):
            for column, (key, values) in enumerate(zip((opening, *KEYS), ATTRIBUTES.values(), strict=True)):
                tokens += [key, values[vector[column]]]
    differences = written_differences(first, second)
    tokens.append(DIFFERENCES_ONLY if generic else DIFFERENCES)
    for place, column in enumerate(differences):
        tokens.append(FIRST_ITEM[column] if place == 0 else NEXT_ITEM[column - 1])
    return [*tokens, VERDICT, YES if len(differences) <= SAME_AT_MOST else NO, END]


def answer_ids(first_PA: np.ndarray, second_PA: np.ndarray, *, generic: bool = False) -> np.ndarray:
    """(pairs, longest answer) token ids of the answers about pairs of birds, padded with `PAD`."""
    rows = [
        [TOKEN_ID[token] for token in answer_tokens(first, second, generic=generic)]
        for first, second in zip(first_PA, second_PA, strict=True)
    ]
    longest = max(map(len, rows))
    return np.array([row + [TOKEN_ID[PAD]] * (longest - len(row)) for row in rows], np.int64)


def answer_text(first: np.ndarray, second: np.ndarray, *, generic: bool = False) -> str:
    """The answer as it reads, without `END`; `json.loads` takes it."""
    return "".join(answer_tokens(first, second, generic=generic)[:-1])


def read_answer(text: str) -> dict | None:
    """The parsed structured answer, or None if it is not well formed: all keys in order, allowed values, a verdict."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    keys = ["bird_1", "bird_2", "differences", VERDICT_KEY]
    if not isinstance(answer, dict) or list(answer) != keys or answer[VERDICT_KEY] not in ("yes", "no"):
        return None
    for bird in keys[:2]:
        if not isinstance(answer[bird], dict) or list(answer[bird]) != list(NAMES):
            return None
        if any(answer[bird][name] not in values for name, values in ATTRIBUTES.items()):
            return None
    return answer
