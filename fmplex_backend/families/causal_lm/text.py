"""From tokens to text, as they come: nothing is sent that a later token may still change. Imports no torch.

A token may hold a part of a character, so text is held back while it ends in the replacement character. A token's text
may depend on those before it, so the new text is what decoding the last tokens with it adds to decoding them without
it (as vLLM and TGI do). That would be more with each token while none brings text that is certain, of special tokens
after an end that is ignored and of bytes that make no characters, so that after some tokens it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_HELD = 32  # tokens whose text is held back; a character has four bytes at most

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """The text of an answer's tokens, in order."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self._tokens: list[int] = []
        self._start = 0  # of the tokens that are decoded for their context
        self._read = 0  # tokens whose text was given

    def add(self, token: int, *, last: bool = False) -> str:
        """The text that is certain with one more token; all that is left with the last."""
        self._tokens.append(token)
        return self._rest(last=last)

    def rest(self) -> str:
        """What was held back, when no token follows."""
        return self._rest(last=True)

    def _rest(self, *, last: bool) -> str:
        known = self.decode(self._tokens[self._start : self._read])
        whole = self.decode(self._tokens[self._start :])
        uncertain = len(whole) <= len(known) or whole.endswith(REPLACEMENT)
        if uncertain and not last and len(self._tokens) - self._read < MOST_HELD:
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return whole[len(known) :]


class StopStrings:
    """Holds text back that may be the beginning of a stop string, and finds the first of these."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """The text that is certain not to belong to a stop string; up to it, where there is one."""
        self._held += text
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            given, self._held = self._held[: min(found)], ""
            return given
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def rest(self) -> str:
        """What was held back, when no text follows."""
        given, self._held = self._held, ""
        return given

    def _overlap(self, stop: str) -> int:
        """The longest end of the text that a stop string begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
