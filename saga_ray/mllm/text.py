"""Ids to text, and where in the text each token ends."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from saga_ray.mllm.answers import tokens_between


class TokenTexts:
    """Decoder of one tokenizer that knows the characters of every token.

    A token's text on its own is remembered; where the pieces do not add up to the whole (half a multi-byte character,
    spaces put between words) the ends are found by decoding every beginning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, none added."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens visible."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def ends(self, ids: Sequence[int]) -> list[int]:
        """Number of characters of the text after each token."""
        for token in ids:
            if token not in self._pieces:
                self._pieces[token] = self.decode([token])
        pieces = [self._pieces[token] for token in ids]
        if "".join(pieces) != self.decode(ids):
            return [len(self.decode(ids[: i + 1])) for i in range(len(ids))]
        ends, total = [], 0
        for piece in pieces:
            total += len(piece)
            ends.append(total)
        return ends

    def with_word(self, ids: Sequence[int], start: int, stop: int, word: str) -> tuple[int, list[int]] | None:
        """`ids` with another word in place of characters start .. stop - 1: where its tokens begin, and which they are.

        They are those that the tokenizer writes in the answer as a whole (its own words begin with a space in some
        tokenizers), else the one of the written piece with the word in it; None if neither leaves the rest as it is.
        """
        text, ends = self.decode(ids), self.ends(ids)
        wanted = text[:start] + word + text[stop:]
        held = tokens_between(ends, start, stop)
        if not held:
            return None
        before, after = list(ids[: held[0]]), list(ids[held[-1] + 1 :])
        whole = self.encode(wanted)
        written = [whole[i] for i in tokens_between(self.ends(whole), start, start + len(word))]
        pieces = "".join(self._tokenizer.convert_ids_to_tokens(list(ids[held[0] : held[-1] + 1])))
        other = self._tokenizer.convert_tokens_to_ids(pieces.replace(text[start:stop], word, 1))
        for found in (written, [] if other is None else [other]):
            if found and self.decode([*before, *found, *after]) == wanted:
                return held[0], found
        return None
