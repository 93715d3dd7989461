"""How many tokens of prompts a step computes while a vFM sends one request at a time. Standard library only.

A request of such a vFM waits for the step that runs and then for its own, and the prompts of other vFMs in both delay
its first token. In steps that compute next tokens as well, a prompt costs the same in few large or in many small parts;
small ones only let its sequence begin later. A step of prompts alone reads the model's weights for them only, and takes
more tokens.

While such a vFM has been seen within PRESENT_S, a step computes one chunk of prompts, less what its next tokens cost;
where a prompt of that vFM is in the step, others have what it leaves. A vFM that has had less than its share is not
held back: see docs/tune-fairness.md.
"""

from __future__ import annotations

from collections.abc import Callable

from fmplex_backend.types import Request, Vfm

PRESENT_S = 10.0  # for so long after its last request a vFM counts as one that sends one request at a time
PER_ROW = 3  # tokens that a prompt has less for each next token, which takes about as long
LEAST_PART = 8  # every vFM's prompts may compute one eighth of a chunk in a step, so that they go on
LAG_S = 0.25  # seconds of service by which a vFM's start tag may lie behind the largest chosen, and it still waits


class PrefillBudget:
    """Limits the tokens of prompts in a step. The engine thread.

    Args:
        chunk: tokens of a prompt that a step takes at most.
        clock: seconds.
        lag_s: see LAG_S.
    """

    def __init__(self, chunk: int, clock: Callable[[], float], *, lag_s: float = LAG_S) -> None:
        self.chunk, self.clock, self.lag_s = chunk, clock, lag_s
        self.least = max(1, chunk // LEAST_PART)
        self._alone: dict[Vfm, float] = {}  # vFMs that send one request at a time, and when each last did
        self._turn = 0.0  # the largest start tag that was chosen
        self._left = chunk  # tokens of prompts that the step at hand has room for
        self._placed: set[Vfm] = set()  # that have a request in it
        self._begun: set[Vfm] = set()  # of these, those with a part of a prompt
        self._awaited = False  # whether one of `_begun` sends one request at a time

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
