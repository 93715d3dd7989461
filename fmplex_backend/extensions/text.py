"""What comes before a text backbone: template, tokens, cut-off, windows. Runs on the intake thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fmplex_backend.config import TextEncoder
from fmplex_backend.errors import InvalidRequest

CHARS_PER_TOKEN = 32  # a text this much longer than its cut-off is first tried without its tail
GROWTH = 8  # and then with this much more of it


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the backbone takes it. t tokens, specials included."""

    ids: list[int]  # t
    plain: list[int]  # positions of the tokens that are neither special nor of the template
    offsets: npt.NDArray[np.int32]  # [len(plain), 2] characters in the text as sent
    truncated: bool
    vectors: npt.NDArray[np.float32] | None = None  # [t, width]: what goes in, where no ids do


class TextTokenizer:
    """A Hugging Face fast tokenizer, cut off at the backbone's length or at a task's own."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._by_length: dict[tuple[int, int], Tokenizer] = {}

    def encode(self, text: str, encoder: TextEncoder, *, spans: bool) -> list[Tokens]:
        """Tokenise as `tokenizer(text, truncation=True)` does, window by window; `spans` asks for plain and offsets."""
        length = min(encoder.max_length or self.max_length, self.max_length)
        tokenizer = self._by_length.get((length, encoder.overlap)) or self._cut_at(length, encoder.overlap)
        before, after = encoder.around
        encoding = self._encode(tokenizer, f"{before}{text}{after}", length, encoder.windows)
        windows = [encoding, *encoding.overflowing]
        truncated = len(windows) > encoder.windows
        if not spans:
            return [Tokens(window.ids, [], NO_SPANS, truncated) for window in windows[: encoder.windows]]
        start, stop = len(before), len(before) + len(text)
        keep = [
            position
            for position, (special, (first, last)) in enumerate(
                zip(encoding.special_tokens_mask, encoding.offsets, strict=True)
            )
            if not special and last > start and first < stop
        ]
        offsets = np.array([encoding.offsets[position] for position in keep], dtype=np.int32).reshape(-1, 2)
        return [Tokens(encoding.ids, keep, np.clip(offsets - start, 0, len(text)), truncated)]

    def _encode(self, tokenizer: Tokenizer, text: str, length: int, windows: int) -> Any:
        """A megabyte is not tokenised for the sake of its first few hundred tokens.

        What lies before the last word of a cut text comes out as in the whole: if windows that are kept end before
        that word, the rest of the text changes nothing in them.
        """
        size = length * windows * CHARS_PER_TOKEN
        while size < len(text) and self._tokenizer.truncation_side == "right":
            encoding = tokenizer.encode(text[:size])
            every = [encoding, *encoding.overflowing]
            if len(every) > windows and _last_word(every[:windows]) < _last_word(every):
                return encoding
            size *= GROWTH
        return tokenizer.encode(text)

    def _cut_at(self, length: int, overlap: int) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.enable_truncation(length, stride=overlap, direction=self._tokenizer.truncation_side)
        self._by_length[length, overlap] = tokenizer
        return tokenizer


def _last_word(windows: list[Any]) -> int:
    return max((word for window in windows for word in window.word_ids if word is not None), default=-1)


NO_SPANS = np.zeros((0, 2), dtype=np.int32)


class TextTokens:
    """A task's own way with the backbone's tokenizer."""

    takes = "TEXT"
    features: int | None = None

    def __init__(self, tokenizer: TextTokenizer, section: TextEncoder) -> None:
        self.tokenizer, self.section = tokenizer, section

    def encode(self, value: Any, *, spans: bool) -> list[list[Tokens]]:
        """Each text's windows; raises InvalidRequest."""
        windows = [self.tokenizer.encode(text, self.section, spans=spans) for text in texts_of(value)]
        for position, own in enumerate(windows):
            if not all(row.ids for row in own):  # a tokenizer that adds no specials
                raise InvalidRequest(f"TEXT[{position}] holds no tokens: there is nothing to encode")
        return windows


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
