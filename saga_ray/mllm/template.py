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

import json
from collections.abc import Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from saga_ray.mllm.answers import NONE, SAME, parse_answer, plain
from saga_ray.mllm.frozen import FrozenMLLM
from saga_ray.mllm.prompt import Prompt, description_keys

FED = -1
"""In place of a set's number: the token was fed."""
MOST_DIFFERENCES = 4
"""Attributes listed as differences, where an answer has to list them; the demo MLLM was taught no more."""
_TOP, _DIFFERENCES, _VERDICT = "", "differences", "verdict"

Slot = tuple[str, str]
"""Key of the description, or "" for what stands at the top, and name of the value."""
Walk = Generator["list[int] | int", "int | None", None]
"""Yields tokens to feed, or the number of the set that the next token is drawn from, and is sent what was drawn."""


class Template:
    """The form of a prompt's answers, in the tokens of one MLLM.

    Raises:
        ValueError: in one sentence, if the tokenizer has no tokens for the words of such an answer.
    """

    def __init__(self, mllm: FrozenMLLM, prompt: Prompt) -> None:
        self._tokenizer, self._prompt = mllm.tokenizer, prompt
        self._end, self._banned_V = mllm.end_ids[0], torch.isinf(mllm.bias_V)
        self._sets: dict[tuple[int, ...], int] = {}
        self._text_sets: dict[int | None, int] = {}
        self._rows: list[Tensor] = []
        self._table_AV: Tensor | None = None
        self._ids: dict[str, list[int]] = {}
        self._lists_differences = False
        self.slots = dict(_slots(prompt))
        """Allowed words of every value in the order of the answer; None for text."""
        self._open = self._text_tokens() if None in self.slots.values() else []
        if not self._can_be_written():
            # The demo MLLM knows whole answers only: there the differences follow from the values, and are fed.
            self._lists_differences = prompt.variant != "generic" and all(self.slots.values())
            if not self._lists_differences or not self._can_be_written():
                raise ValueError(
                    f"prompt.answers: the MLLM in {mllm.folder} has no tokens for template answers to its {prompt.variant} prompt; "
                    f"set prompt.answers=free"
                )

    @property
    def table_AV(self) -> Tensor:
        """bool (sets, V): which tokens each set holds; grows while answers are written."""
        if self._table_AV is None or len(self._table_AV) < len(self._rows):
            self._table_AV = torch.stack(self._rows)
        return self._table_AV

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, the end token included."""
        names = sorted(self._prompt.attributes, key=lambda name: len(self._encode(_quoted(name))))[-MOST_DIFFERENCES:]
        total = len(self._encode(self._text_before(0, {}))) + 1
        for number, words in enumerate(self.slots.values()):
            tail = self._text_before(number + 1, {}, apart=names)
            written = [len(self._encode(_inside(word) + tail)) for word in words or ()]
            total += max(written) if words else self._prompt.value_tokens + len(self._encode(tail))
        return total

    def walk(self) -> Walk:
        """Through one answer, from its first token to the end token."""
        values: dict[Slot, str] = {}
        yield self._encode(self._text_before(0, values))
        for number, (slot, words) in enumerate(self.slots.items()):
            if words is None:
                closing, *tail = self._encode(self._text_before(number + 1, values))
                yield from self._some_text(closing)
                yield tail
                continue
            paths = {
                word: self._encode(_inside(word) + self._text_before(number + 1, values | {slot: word}))
                for word in words
            }
            depth = 0
            while len(paths) > 1:
                token = yield from self._one_of({path[depth] for path in paths.values()})
                paths = {word: path for word, path in paths.items() if path[depth] == token}
                depth += 1
            ((values[slot], path),) = paths.items()
            yield path[depth:]
        yield [self._end]

    def given(self, answers: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Given answers in this form, whatever form they are written in: tokens, and the sets that they count as drawn from.

        Text is cut at `value_tokens` tokens.

        Raises:
            ValueError: for an answer that leaves a value out, or gives one that is not allowed.
        """
        found = [self._replayed(self._ids_of(text)) for text in answers]
        return [ids for ids, _ in found], [sets for _, sets in found]

    def _replayed(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Follow the walk along the tokens of an answer in form."""
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
        answer = parse_answer(text, self._prompt.verdict_key)
        if answer.verdict == NONE:
            raise _not_in_form(text, f"verdict under {self._prompt.verdict_key!r}")
        said = dict(zip(description_keys(self._prompt), answer.descriptions(text), strict=True))
        found = {(key, plain(name)): word.strip() for key, of_image in said.items() for name, word in of_image.items()}
        found[_TOP, _VERDICT] = "yes" if answer.verdict == SAME else "no"
        if self._prompt.variant == "generic":
            found[_TOP, _DIFFERENCES] = _differences(text)
        values: dict[Slot, str] = {}
        ids = list(self._encode(self._text_before(0, values)))
        for number, (slot, words) in enumerate(self.slots.items()):
            key, name = slot
            word = found.get((key, plain(name)), "")
            if words is None:
                is_text_V = self._rows[self._text_set(None)]
                tokens = [token for token in self._encode(_inside(word)) if is_text_V[token]]
                ids += tokens[: self._prompt.value_tokens]
                tail = self._encode(self._text_before(number + 1, values))
            else:
                tokens = [each for each in words if plain(each) == plain(word)]
                values[slot] = tokens[0] if tokens else ""
                tail = self._encode(_inside(values[slot]) + self._text_before(number + 1, values))
            if not tokens:
                raise _not_in_form(text, f"allowed value of {'.'.join(filter(None, slot))}")
            ids += tail
        return [*ids, self._end]

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
        for _ in range(self._prompt.value_tokens - 1):
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

    def _text_before(self, number: int, values: Mapping[Slot, str], apart: Sequence[str] | None = None) -> str:
        """What is fed before slot `number`, or behind the last one, beginning with the quote that ends the slot before.

        Args:
            values: What was drawn before.
            apart: Listed as differences in place of those that `values` say.
        """
        slots = list(self.slots)
        before = slots[number - 1] if number else None
        if number == len(slots):
            return '"}'
        key, name = slots[number]
        start = "{" if before is None else '"'
        if key:
            if before is None or before[0] != key:
                return f'{start}{"},"[: 2 if before else 0]}{_quoted(key)}:{{{_quoted(name)}:"'
            return f'{start},{_quoted(name)}:"'
        inside = "}," if before is not None and before[0] else "," if before is not None else ""
        if name == _VERDICT and self._lists_differences:
            names = _apart(self._prompt, values) if apart is None else apart
            inside += f'"differences":[{",".join(_quoted(name) for name in names[:MOST_DIFFERENCES])}],'
        written = self._prompt.verdict_key if name == _VERDICT else name
        return f'{start}{inside}{_quoted(written)}:"'

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]

    def _can_be_written(self) -> bool:
        """True if answers with every allowed word come out of the tokenizer as they went in, and hold no banned token."""
        self._ids.clear()
        longest = max(len(words or ()) for words in self.slots.values())
        for turn in range(max(1, longest)):
            values: dict[Slot, str] = {}
            text, ids = "", []
            for number, (slot, words) in enumerate(self.slots.items()):
                head = self._text_before(0, values) if number == 0 else ""
                values[slot] = words[turn % len(words)] if words else ""
                tail = _inside(values[slot]) + self._text_before(number + 1, values)
                text += head + tail
                ids += self._encode(head) + self._encode(tail)
            if bool(self._banned_V[torch.tensor(ids, device=self._banned_V.device)].any()) or self._decode(ids) != text:
                return False
        return True

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

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


def _slots(prompt: Prompt) -> Iterator[tuple[Slot, tuple[str, ...] | None]]:
    if prompt.variant == "generic":
        yield (_TOP, _DIFFERENCES), None
    else:
        for key in description_keys(prompt):
            for name, words in prompt.attributes.items():
                yield (key, name), words
    yield (_TOP, _VERDICT), ("yes", "no")


def _apart(prompt: Prompt, values: Mapping[Slot, str]) -> list[str]:
    """Attributes that were described differently."""
    first, second = description_keys(prompt)
    return [name for name in prompt.attributes if values.get((first, name)) != values.get((second, name))]


def _differences(text: str) -> str:
    """What a generic answer gives as differences."""
    try:
        found = json.loads(text)["differences"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ", ".join(map(str, found)) if isinstance(found, list) else ""


def _not_in_form(text: str, missing: str) -> ValueError:
    return ValueError(
        f"answers: {text[:200]!r} gives no {missing}, which template answers need; complete it, or set prompt.answers=free"
    )


def _quoted(word: str) -> str:
    return json.dumps(word, ensure_ascii=False)


def _inside(word: str) -> str:
    return _quoted(word)[1:-1]
