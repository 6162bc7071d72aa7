"""Template answers: keys and punctuation of the JSON answer are fed, only values and verdict are drawn.

A template is a walk through an answer. At every token it knows the set of tokens that may come next. Where that is one token,
nothing is drawn: the token is fed, has probability 1 and carries no gradient. Where it is several, the policy is the
MLLM's distribution over that set alone, in the sampler and in log pi alike. So the policy is exact, every answer
can be read, and an answer costs one decoding round per decision instead of one per token.

    fed      {"bird_1":{"bill":"        drawn   one of the values that the vocabulary allows, by the tokens in which they differ
    fed      ","wing":"                 drawn   or, where it leaves the words open, up to `value_tokens` tokens of text
    ...
    fed      "},"same_species":"        drawn   yes or no
    fed      "} and the end token

Values are tokenised together with what follows them, so that a tokenizer that writes `yes"}` as one token may do so.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from saga_ray.mllm.form import MOST_DIFFERENCES, AnswerForm, Slot, inside, not_in_form, quoted
from saga_ray.mllm.frozen import FrozenMLLM
from saga_ray.mllm.prompt import Prompt

FED = -1
"""In place of a set's number: the token was fed."""

Walk = Generator["list[int] | int", "int | None", None]
"""Yields tokens to feed, or the number of the set that the next token is drawn from, and is sent what was drawn."""


class Template:
    """The form of a prompt's answers, in the tokens of one MLLM.

    Raises:
        ValueError: in one sentence, if the tokenizer has no tokens for the words of such an answer.
    """

    def __init__(self, mllm: FrozenMLLM, prompt: Prompt) -> None:
        self._tokenizer, self._value_tokens = mllm.tokenizer, prompt.value_tokens
        self._end, self._banned_V = mllm.end_ids[0], torch.isinf(mllm.bias_V)
        self._sets: dict[tuple[int, ...], int] = {}
        self._text_sets: dict[int | None, int] = {}
        self._rows: list[Tensor] = []
        self._table_AV: Tensor | None = None
        self._ids: dict[str, list[int]] = {}
        self._known_paths: dict[int, dict[str, list[int]]] = {}
        banned = set(self._banned_V.nonzero().flatten().tolist())
        self.form = form_in_tokens(prompt, mllm.tokenizer, mllm.folder, banned)
        self._open = self._text_tokens() if None in self.form.words.values() else []

    @property
    def table_AV(self) -> Tensor:
        """bool (sets, V): which tokens each set holds; grows while answers are written."""
        if self._table_AV is None or len(self._table_AV) < len(self._rows):
            self._table_AV = torch.stack(self._rows)
        return self._table_AV

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, the end token included."""
        names = sorted(self.form.prompt.attributes, key=lambda name: len(self._encode(quoted(name))))
        total = len(self._encode(self.form.text_before(0, {}))) + 1
        for number, words in enumerate(self.form.words.values()):
            tail = self.form.text_before(number + 1, {}, apart=names[-MOST_DIFFERENCES:])
            written = [len(self._encode(inside(word) + tail)) for word in words or ()]
            total += max(written) if words else self._value_tokens + len(self._encode(tail))
        return total

    def walk(self) -> Walk:
        """Through one answer, from its first token to the end token."""
        values: dict[Slot, str] = {}
        yield self._encode(self.form.text_before(0, values))
        for number, (slot, words) in enumerate(self.form.words.items()):
            if words is None:
                closing, *tail = self._encode(self.form.text_before(number + 1, values))
                yield from self._some_text(closing)
                yield tail
                continue
            paths, depth = self._paths(number, values), 0
            while len(paths) > 1:
                token = yield from self._one_of({path[depth] for path in paths.values()})
                paths = {word: path for word, path in paths.items() if path[depth] == token}
                depth += 1
            ((values[slot], path),) = paths.items()
            yield path[depth:]
        yield [self._end]

    def given(self, answers: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Given answers in this form, whatever form they are written in: tokens, and the sets that they count as drawn from.

        Text is cut at `value_tokens` tokens, and what may not stand in it is left out.

        Raises:
            ValueError: for an answer that leaves a value out, or gives one that is not allowed.
        """
        found = [self.replayed(self._ids_of(text)) for text in answers]
        return [ids for ids, _ in found], [sets for _, sets in found]

    def replayed(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The tokens of an answer in form, and the sets that they are drawn from: the walk, followed along them."""
        sets: list[int] = []
        walk, drawn = self.walk(), None
        while len(sets) < len(ids):
            step = walk.send(drawn)
            if isinstance(step, list):
                assert ids[len(sets) : len(sets) + len(step)] == step, "the answer is in form"
                drawn = None
                sets += [FED] * len(step)
            else:
                drawn = ids[len(sets)]
                assert self._rows[step][drawn], "the answer is in form"
                sets.append(step)
        return ids, sets

    def _ids_of(self, text: str) -> list[int]:
        """Tokens of the answer in form that says what `text` says."""
        said = self.form.values_of(text)
        ids = list(self._encode(self.form.text_before(0, {})))
        for number, (slot, words) in enumerate(self.form.words.items()):
            if words is not None:
                ids += self._encode(inside(said[slot]) + self.form.text_before(number + 1, said))
                continue
            is_text_V = self._rows[self._text_set(None)]
            tokens = [token for token in self._tokens(inside(said[slot])) if is_text_V[token]]
            if not tokens:
                raise not_in_form(text, f"allowed value of {'.'.join(filter(None, slot))}")
            ids += tokens[: self._value_tokens] + self._encode(self.form.text_before(number + 1, said))
        return [*ids, self._end]

    def _paths(self, number: int, values: Mapping[Slot, str]) -> dict[str, list[int]]:
        """Tokens of every allowed word of a slot, and of what is fed behind it."""
        if number not in self._known_paths or self.form.depends_on_values(number + 1):
            slot = self.form.slots[number]
            self._known_paths[number] = {
                word: self._encode(inside(word) + self.form.text_before(number + 1, {**values, slot: word}))
                for word in self.form.words[slot] or ()
            }
        return self._known_paths[number]

    def _one_of(self, options: set[int]) -> Generator[list[int] | int, int | None, int]:
        """The next token: drawn, or fed where there is no choice."""
        if len(options) == 1:
            (token,) = options
            yield [token]
            return token
        drawn = yield self._set(sorted(options))
        assert drawn is not None
        return drawn

    def _some_text(self, closing: int) -> Generator[list[int] | int, int | None, None]:
        """At least one token of text, at most `value_tokens`, and the token that ends it."""
        yield self._text_set(None)
        for _ in range(self._value_tokens - 1):
            drawn = yield self._text_set(closing)
            if drawn == closing:
                return
        yield [closing]

    def _text_set(self, closing: int | None) -> int:
        """Number of the set of all tokens of text and the one that ends it, if it may end."""
        if closing not in self._text_sets:
            self._text_sets[closing] = self._set(self._open + [token for token in [closing] if token is not None])
        return self._text_sets[closing]

    def _set(self, tokens: Sequence[int]) -> int:
        """Number of a set of tokens."""
        key = tuple(tokens)
        if key not in self._sets:
            self._sets[key] = len(self._rows)
            allowed_V = torch.zeros_like(self._banned_V)
            allowed_V[torch.tensor(key, device=allowed_V.device)] = True
            self._rows.append(allowed_V)
        return self._sets[key]

    def _encode(self, text: str) -> list[int]:
        """Tokens of text that comes up again and again."""
        if text not in self._ids:
            self._ids[text] = self._tokens(text)
        return self._ids[text]

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _text_tokens(self) -> list[int]:
        """Tokens that may stand inside a JSON string, whatever stands around them."""
        tokenizer = self._tokenizer
        added = {token for token, each in tokenizer.added_tokens_decoder.items() if each.special}
        special = {*tokenizer.all_special_ids, *added}
        known = [i for i in range(len(tokenizer)) if i not in special and not self._banned_V[i]]
        texts = tokenizer.batch_decode([[i] for i in known], clean_up_tokenization_spaces=False)
        return [
            i for i, text in zip(known, texts, strict=True) if text and not any(c in '"\\' or c < " " for c in text)
        ]


def form_in_tokens(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, folder: Path, banned: Container[int] = ()
) -> AnswerForm:
    """The form of a prompt's template answers that a tokenizer can write.

    Args:
        banned: tokens that an answer may not hold.

    Raises:
        ValueError: in one sentence, if it can write none.
    """
    form = AnswerForm(prompt)
    if _can_be_written(form, tokenizer, banned):
        return form
    # The demo MLLM knows whole answers only: there the differences follow from the values, and are fed.
    form = AnswerForm(prompt, lists_differences=True)
    is_closed = prompt.variant != "generic" and all(form.words.values())
    if is_closed and _can_be_written(form, tokenizer, banned):
        return form
    raise ValueError(
        f"prompt.answers: the MLLM in {folder} has no tokens for template answers to its {prompt.variant} prompt; "
        f"set prompt.answers=free"
    )


def _can_be_written(form: AnswerForm, tokenizer: PreTrainedTokenizerBase, banned: Container[int]) -> bool:
    """True if answers with every allowed word come out of the tokenizer as they went in, and hold no banned token."""
    for turn in range(max(len(words or ()) for words in form.words.values())):
        values: dict[Slot, str] = {}
        parts = [form.text_before(0, values)]
        for number, (slot, words) in enumerate(form.words.items()):
            values[slot] = words[turn % len(words)] if words else ""
            parts.append(inside(values[slot]) + form.text_before(number + 1, values))
        ids = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
        written = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if written != "".join(parts) or any(token in banned for token in ids):
            return False
    return True
