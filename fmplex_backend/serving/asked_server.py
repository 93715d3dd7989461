"""A server that its own backbone asks, without waiting for it again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("fmplex")

PAUSE_S = 2.0  # for which a server that did not answer is not asked again: those who ask may hold requests up


class AskedServer:
    """A service of the server. Any thread.

    Args:
        address: HOST:PORT; "" where it is not known.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address, self.clock = address, clock
        self._asks_from = clock()

    @property
    def may_be_asked(self) -> bool:
        """Whether its address is known, and no answer failed to come a moment ago."""
        return bool(self.address) and self.clock() >= self._asks_from

    def pause(self, question: str, problem: str) -> None:
        """It did not answer: all is as where its address is not known, for a while."""
        self._asks_from = self.clock() + PAUSE_S
        log.info("the server at %s does not tell %s: %s", self.address, question, problem)
