"""Drops requests that wait, to be prepared or to run, and whose clients have cancelled them.

`Request.is_cancelled` is a round trip to the server, so only requests that have waited for long are asked about. The
thread that answers a request asks, so that no last reply is sent meanwhile: the server reads an object that is deleted
with the last reply, and a segmentation fault ends it where it is asked too late (seen in Triton 2.51).
"""

from __future__ import annotations

import math
import threading
from functools import partial

from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.preparation import Preparation
from fmplex_backend.serving.replies import Replies
from fmplex_backend.types import Request

PERIOD_S = 1.0  # also how long a request has waited before it is asked about
MAX_ASKED = 64  # requests per period, of those that wait to be prepared and of those that wait to run


class Cancellation:
    """Asks about requests that wait, once per period."""

    def __init__(self, preparation: Preparation, engine: Engine, replies: Replies) -> None:
        self.preparation, self.engine, self.replies = preparation, engine, replies
        self._stopped = threading.Event()
        # When the last request arrived that was asked about, of those to be prepared and of those to run: the next
        # period goes on behind it, and after the youngest with the oldest.
        self._asked_until = [-math.inf, -math.inf]

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def run_forever(self) -> None:
        """Ask until stopped."""
        while not self._stopped.wait(PERIOD_S):
            if not self.engine.is_idle or self.engine.scheduler.queued or self.preparation.is_waiting:
                asked = threading.Event()
                self.engine.post(partial(self._find_waiting, asked))
                while not asked.wait(PERIOD_S):  # the engine may be in a long pass: one round at a time
                    if self._stopped.is_set():
                        return

    def _find_waiting(self, asked: threading.Event) -> None:
        """On the engine thread, which owns the queues."""
        since = self.engine.clock() - PERIOD_S
        # Those to be prepared first: one that goes on meanwhile is asked about twice rather than never.
        for place, find in enumerate((self.preparation.waiting, self.engine.waiting)):
            found = find(since, MAX_ASKED, self._asked_until[place])
            for request in found:
                self.replies.post(request, partial(self._ask, request))
            self._asked_until[place] = found[-1].arrived_at if len(found) == MAX_ASKED else -math.inf
        self.replies.post_last(asked.set)

    def _ask(self, request: Request) -> None:
        """On the thread that answers the request."""
        if not request.resolved and _is_cancelled(request) and not self.preparation.cancel(request):
            self.engine.post(partial(self.engine.cancel, [request]))


def _is_cancelled(request: Request) -> bool:
    try:
        return request.is_cancelled is not None and bool(request.is_cancelled())
    except Exception:  # the server cannot tell: the request is served
        return False
