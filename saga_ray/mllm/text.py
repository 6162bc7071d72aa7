"""Ids to text, and where in the text each token ends."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """Decoder of one tokenizer that knows the characters of every token.

    A token's text on its own is remembered; where the pieces do not add up to the whole (half a multi-byte character,
    spaces put between words) the ends are found by decoding every beginning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

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

    def with_word(self, token: int, wrong: str, right: str) -> int:
        """The token whose text is that of `token` with `right` in place of `wrong`; itself if it holds `right`; -1 if there is none."""
        text = self.decode([token])
        if wrong not in text:
            return token if right in text else -1
        ids = self._tokenizer.encode(text.replace(wrong, right, 1), add_special_tokens=False)
        return ids[0] if len(ids) == 1 and self.decode(ids) == text.replace(wrong, right, 1) else -1
