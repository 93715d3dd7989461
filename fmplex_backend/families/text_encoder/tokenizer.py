"""From texts to tokens: template, truncation, windows. Runs before the request is queued."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.text_encoder.texts import Excerpt, excerpt, read_each

CHARS_PER_TOKEN = 8  # of a long text only so many characters for each token that is kept are tokenised at first
GROWTH = 8  # the factor by which that grows, where it left too few tokens
BYTES_PER_TOKEN = 512  # of a text no more is read than so many for each token that is kept (or the longest token's)
MIN_TEXT_BYTES, MAX_TEXT_BYTES = 64 << 10, 4 << 20  # but so much at least, and at most
TOKEN_BYTES = 40 + array("i").itemsize  # about what a token id takes in a list, and in its row's key
UNLOCKED_CHARS = 2048  # from here on, the interpreter's lock is released: it takes longer than getting it back


@dataclass(frozen=True, slots=True)
class Tokens:
    """One window of a text as the backbone takes it. t tokens, special ones included."""

    ids: list[int]  # t
    plain: list[int]  # positions of the tokens that are neither special nor of the template
    offsets: npt.NDArray[np.int32]  # [len(plain), 2] characters in the text as sent
    truncated: bool
    vectors: npt.NDArray[np.float32] | None = None  # [t, width] input embeddings, in the place of the ids'
    source: Hashable = None  # of vectors: their encoder and what it read

    @property
    def length(self) -> int:
        """Of the window, in tokens."""
        return len(self.ids)

    @property
    def key(self) -> Hashable:
        """All that its hidden states depend on.

        For vectors that is what they were made of: they themselves differ by the rows that they were computed with, in
        their last bits.
        """
        return array("i", self.ids).tobytes(), self.source

    @property
    def bytes(self) -> int:
        """About what it takes in memory, its key included."""
        return TOKEN_BYTES * len(self.ids) + (0 if self.vectors is None else self.vectors.nbytes)


class TextOptions(Protocol):
    """What the section `text` of a task.json says of tokenising."""

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and after the text."""

    @property
    def max_length(self) -> int | None:
        """Tokens, specials included; None: the backbone's."""

    @property
    def windows(self) -> int:
        """How many windows of that length a longer text is read in."""

    @property
    def overlap(self) -> int:
        """Tokens that neighbouring windows share."""


class TextTokenizer:
    """A Hugging Face fast tokenizer, cut off at the backbone's length or at a task's own."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._by_length: dict[tuple[int, int], Tokenizer] = {}
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self._bytes_per_token = max(longest, BYTES_PER_TOKEN)

    def read(self, cell: bytes | str, encoder: TextOptions) -> Excerpt:
        """As much of a text as its kept tokens can come from; raises UnicodeDecodeError.

        The tokens are those of the whole text, unless it has so few of them in so many bytes that it is still at its
        kept tokens at the cut: megabytes that a normalizer deletes, or that are one unknown word. Then they are those
        of the part. Either way the text counts as truncated.
        """
        tokens = min(encoder.max_length or self.max_length, self.max_length) * encoder.windows
        most = min(max(tokens * self._bytes_per_token, MIN_TEXT_BYTES), MAX_TEXT_BYTES)
        return excerpt(cell, most, from_end=self._tokenizer.truncation_side == "left")

    def encode(self, text: str, encoder: TextOptions, *, spans: bool) -> list[Tokens]:
        """Tokenise as `tokenizer(text, truncation=True)` does, window by window; `spans` asks for plain and offsets."""
        return self.encode_excerpt(self.read(text, encoder), encoder, spans=spans)

    def encode_excerpt(self, part: Excerpt, encoder: TextOptions, *, spans: bool) -> list[Tokens]:
        """The same for what `read` returns."""
        text = part.text
        length = min(encoder.max_length or self.max_length, self.max_length)
        tokenizer = self._by_length.get((length, encoder.overlap)) or self._cut_at(length, encoder.overlap)
        before, after = encoder.around
        encoding = self._encode(tokenizer, f"{before}{text}{after}", length, encoder.windows)
        windows = [encoding, *encoding.overflowing]
        truncated = part.is_cut or len(windows) > encoder.windows
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
        return [Tokens(encoding.ids, keep, np.clip(offsets - start, 0, len(text)) + part.skipped, truncated)]

    def _encode(self, tokenizer: Tokenizer, text: str, length: int, windows: int) -> Any:
        """Tokenise no more of the text than the kept windows need.

        Up to its last word, a cut text has the same tokens as the whole text: if the kept windows end before that
        word, the rest of the text cannot change them.
        """
        size = length * windows * CHARS_PER_TOKEN
        while size < len(text) and self._tokenizer.truncation_side == "right":
            encoding = _tokenise(tokenizer, text[:size])
            every = [encoding, *encoding.overflowing]
            if len(every) > windows and _last_word(every[:windows]) < _last_word(every):
                return encoding
            size *= GROWTH
        return _tokenise(tokenizer, text)

    def _cut_at(self, length: int, overlap: int) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.enable_truncation(length, stride=overlap, direction=self._tokenizer.truncation_side)
        self._by_length[length, overlap] = tokenizer
        return tokenizer


def _tokenise(tokenizer: Tokenizer, text: str) -> Any:
    """`encode` holds the interpreter's lock, which stops every thread of the backbone; `encode_batch` releases it."""
    return tokenizer.encode(text) if len(text) < UNLOCKED_CHARS else tokenizer.encode_batch([text])[0]


def _last_word(windows: list[Any]) -> int:
    return max((word for window in windows for word in window.word_ids if word is not None), default=-1)


NO_SPANS = np.zeros((0, 2), dtype=np.int32)


class TextTokens:
    """The backbone's tokenizer with a task's section: prefix, cut-off, windows."""

    takes = "TEXT"

    def __init__(self, tokenizer: TextTokenizer, section: TextOptions) -> None:
        self.tokenizer, self.section = tokenizer, section

    def encode(self, value: Any, *, spans: bool) -> list[list[Tokens]]:
        """Each text's windows; raises InvalidRequest."""
        parts = read_each(value, partial(self.tokenizer.read, encoder=self.section))
        windows = [self.tokenizer.encode_excerpt(part, self.section, spans=spans) for part in parts]
        for position, own in enumerate(windows):
            if not all(row.ids for row in own):  # an empty text, of a tokenizer that adds no special tokens
                raise InvalidRequest(f"TEXT[{position}] holds no tokens: there is nothing to encode")
        return windows
