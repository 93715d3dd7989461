"""How much of a prompt a step takes beside a vFM that asks for one thing at a time. Standard library only.

Such a vFM waits for the step at hand and then for its own, and what other vFMs' prompts add to both delays its first
token. A chunk adds as much to a step that computes next tokens as to any other of these, so that less of it at a time
costs little but rows that stay empty until a sequence has begun. A step without next tokens is different: the model's
weights are read for the prompt alone, and it takes more of it.

So while a vFM is about that has had just one request at a time, a step takes one chunk of prompts, less what its next
tokens take; where a prompt of that vFM is in it, others have what this one leaves. Who is behind its turn is not held
back: see docs/tune-fairness.md.
"""

from __future__ import annotations

from collections.abc import Callable

from fmplex_backend.types import Request, Vfm

PRESENT_S = 10.0  # for so long after its last request a vFM that asks for one thing at a time is about
PER_ROW = 3  # tokens that a prompt has less for each next token, which takes about as long
LEAST_PART = 8  # of a chunk every vFM's prompts have that part, so that they go on
LAG_S = 0.25  # seconds of service by which a vFM may be behind whoever has had a turn, and still be held back


class Pace:
    """What prompts have of the steps. The engine thread.

    Args:
        chunk: tokens of a prompt that a step takes at most.
        clock: seconds.
        lag_s: see LAG_S.
    """

    def __init__(self, chunk: int, clock: Callable[[], float], *, lag_s: float = LAG_S) -> None:
        self.chunk, self.clock, self.lag_s = chunk, clock, lag_s
        self.least = max(1, chunk // LEAST_PART)
        self._alone: dict[Vfm, float] = {}  # when a vFM last had one request alone that began when there was no other
        self._turn = 0.0  # the largest tag of whose turn it has been
        self._left = chunk  # tokens of prompts that the step at hand has room for
        self._placed: set[Vfm] = set()  # in it
        self._begun: set[Vfm] = set()  # of these, those with some of a prompt
        self._awaited = False  # whether one of these asks for one thing at a time

    def begin(self) -> None:
        """The next request that asks is the first of another step."""
        now = self.clock()
        self._alone = {vfm: at for vfm, at in self._alone.items() if now - at <= PRESENT_S}
        self._left = self.chunk
        self._placed.clear()
        self._begun.clear()
        self._awaited = False

    def most(self, request: Request, tokens: int, *, begins: bool) -> int:
        """How many tokens a request may compute in this step; 0: it waits for the next one.

        Args:
            tokens: that it would compute.
            begins: whether it has run no step: the last one of many that are done asks for nothing new.
        """
        vfm = request.vfm
        if vfm.spare:
            return self.chunk
        self._turn = max(self._turn, vfm.start)
        if vfm.depth == 1 and vfm not in self._placed:
            if begins or vfm in self._alone:
                self._alone[vfm] = self.clock()
        elif tokens > 1 and self._alone.keys() - {vfm} and (self._turn - vfm.start) * vfm.weight <= self.lag_s:
            is_over = self._left < self.least and (self._awaited or vfm in self._begun)
            return 0 if is_over else max(self.least, self._left)
        return self.chunk

    def place(self, vfm: Vfm, tokens: int) -> None:
        """A request of a vFM computes so many tokens in this step."""
        self._placed.add(vfm)
        self._left -= PER_ROW if tokens == 1 else tokens
        if tokens > 1:
            self._begun.add(vfm)
            self._awaited |= vfm in self._alone
