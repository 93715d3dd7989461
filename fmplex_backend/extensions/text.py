"""What comes before a text backbone: prefix, tokens, cut-off. Runs on the intake thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fmplex_backend.config import TextEncoder
from fmplex_backend.errors import InvalidRequest

CHARS_PER_TOKEN = 32  # a text this much longer than its cut-off is first tried without its tail


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the backbone takes it. t tokens, specials included."""

    ids: list[int]  # t
    plain: list[int]  # positions of the tokens that are neither special nor of the prefix
    offsets: npt.NDArray[np.int32]  # [len(plain), 2] characters in the text as sent
    truncated: bool


class TextTokenizer:
    """A Hugging Face fast tokenizer, cut off at the backbone's length or at a task's own."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._by_length: dict[int, Tokenizer] = {}

    def encode(self, text: str, encoder: TextEncoder, *, spans: bool) -> Tokens:
        """Tokenise as `tokenizer(prefix + text, truncation=True)` does; `spans` asks for plain and offsets."""
        length = min(encoder.max_length or self.max_length, self.max_length)
        tokenizer = self._by_length.get(length) or self._cut_at(length)
        whole = encoder.prefix + text
        encoding = self._encode(tokenizer, whole, length)
        truncated = bool(encoding.overflowing)
        if not spans:
            return Tokens(encoding.ids, [], _NO_SPANS, truncated)
        skip = len(encoder.prefix)
        keep = [
            position
            for position, (special, (_, end)) in enumerate(
                zip(encoding.special_tokens_mask, encoding.offsets, strict=True)
            )
            if not special and end > skip
        ]
        offsets = np.array([encoding.offsets[position] for position in keep], dtype=np.int32).reshape(-1, 2)
        return Tokens(encoding.ids, keep, np.maximum(offsets - skip, 0), truncated)

    def _encode(self, tokenizer: Tokenizer, text: str, length: int) -> Any:
        """A megabyte is not tokenised for the sake of its first few hundred tokens."""
        head = text[: length * CHARS_PER_TOKEN]
        cut = max(head.rfind(" "), head.rfind("\n"))
        if len(head) < len(text) and cut > 0 and self._tokenizer.truncation_side == "right":
            encoding = tokenizer.encode(head[:cut])
            if encoding.overflowing:  # so the tokens kept lie before the cut, whatever follows it
                return encoding
        return tokenizer.encode(text)

    def _cut_at(self, length: int) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.enable_truncation(length, direction=self._tokenizer.truncation_side)
        self._by_length[length] = tokenizer
        return tokenizer


_NO_SPANS = np.zeros((0, 2), dtype=np.int32)


def texts_of(value: Any) -> list[str]:
    """The TEXT tensor ([n, 1] of bytes or str) as texts; raises InvalidRequest."""
    cells = np.asarray(value, dtype=np.object_).reshape(-1)
    if not len(cells):
        raise InvalidRequest("TEXT holds no items; send a shape of [n, 1] with n at least 1")
    texts = []
    for position, cell in enumerate(cells):
        try:
            texts.append(cell.decode("utf-8") if isinstance(cell, bytes) else str(cell))
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"TEXT[{position}] is not valid UTF-8: {error.reason} at byte {error.start}") from None
    return texts
