"""Coalesces calls of `execute`: requests wait at the server while others run, so that one call brings many.

A call of `execute` costs about as much as a request in it: the stub hands it over in a round trip to the server, during
which it holds the interpreter's lock. While a call lasts, the server collects what comes for the next one.

The engine is not left idle for that, unless its passes take no longer than a call: then calls are what limits it, and
requests wait until all replies are sent.
"""

from __future__ import annotations

import threading

from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.replies import Replies

MOST_S = 4e-3  # that a request may wait at the server for others to join it
CALL_S = 3e-4  # about what a call takes


class Coalescing:
    """Makes calls last longer, but no longer than there is something to do."""

    def __init__(self, engine: Engine, replies: Replies) -> None:
        self.engine, self.replies = engine, replies
        self._pausing = False
        self._over = threading.Event()
        engine.when_idle = self._look
        for lane in replies.lanes:
            lane.when_idle = self._look

    def pause(self) -> None:
        """Wait until there is nothing to do, or the time is over. The thread that takes calls in."""
        self._over.clear()
        self._pausing = True  # before looking: whoever becomes idle from now on looks, too
        self._look()
        self._over.wait(MOST_S)
        self._pausing = False

    def _look(self) -> None:
        """End the pause where there is nothing to do any more. Any thread."""
        if self._pausing and self.engine.is_idle:
            short = self.engine.cost.fixed < CALL_S
            if not short or all(lane.is_idle for lane in self.replies.lanes):
                self._over.set()
