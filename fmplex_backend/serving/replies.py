"""The reply thread: decodes outcomes and sends replies, so that the engine does not wait for either."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from fmplex_backend.errors import ExecutionFailed, FmplexError, NotFinite
from fmplex_backend.serving.engine import Engine
from fmplex_backend.types import Answer, Failed, Finished, Outcome, Request, Running, Runtime, Usage

LATENCY_DECAY = 0.98  # of the peak reply latency, per reply
REPORT_EVERY = 8  # replies; a new peak is reported earlier


Command = Callable[[], None]


class Replies:
    """A queue of outcomes, and the thread that answers them in order.

    A command is a function that the thread calls between two replies.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._inbox: SimpleQueue[tuple[Request, Outcome] | Command | None] = SimpleQueue()
        self._latency = 0.0  # peak with exponential decay, in seconds
        self._reported = 0.0  # what the engine knows of it
        self._unreported = 0  # replies since then

    def put(self, request: Request, outcome: Outcome) -> None:
        """Let an outcome be answered; a Running's value is a part of the reply. Any thread."""
        self._inbox.put((request, outcome))

    def post(self, command: Command) -> None:
        """Let the reply thread call a function between two replies. Any thread."""
        self._inbox.put(command)

    def stop(self) -> None:
        """Return from `run_forever` once all that was put before is answered."""
        self._inbox.put(None)

    def run_forever(self, engine: Engine) -> None:
        """Answer until told to stop, and tell the engine how long replies take."""
        while (item := self._inbox.get()) is not None:
            if not isinstance(item, tuple):
                item()
                continue
            request, outcome = item
            try:
                self._answer(request, outcome)
            except BaseException:
                self._inbox.put(item)  # `fail_all` answers it with the rest
                raise
            if isinstance(outcome, Finished):
                self._measure(request, engine)

    def fail_all(self, error: FmplexError) -> None:
        """Answer what is left with an error, once the reply thread has ended."""
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, tuple):
                with suppress(Exception):  # the server may still take the others
                    item[0].resolve(Failed(error))

    def _answer(self, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            request.resolve(outcome)
        elif request.resolved:  # a former part failed, or the backbone is going down
            return
        elif isinstance(outcome, Running):
            self._answer_part(request, outcome.value)
        else:
            request.resolve(self._decode(request, outcome.value))

    def _answer_part(self, request: Request, value: Any) -> None:
        part = self._decode(request, value)
        if isinstance(part, Failed):
            request.resolve(part)  # the engine does not queue it again
            return
        try:
            request.send_part(part)
        except FmplexError as error:
            request.vfm.replied.fail(error.reason)
            request.resolve(Failed(error))

    def _decode(self, request: Request, value: Any) -> Answer | Failed:
        try:
            tensors = self.runtime.decode(request, value)
        except Exception as error:
            failed = ExecutionFailed(f"the decoder of {request.vfm.name!r} raised {type(error).__name__}: {error}")
            request.vfm.replied.fail(failed.reason)
            return Failed(failed)
        if wrong := [name for name, tensor in tensors.items() if not _is_finite(tensor)]:
            not_finite = NotFinite(
                f"the answer of {request.vfm.name!r} holds NaN or infinite numbers in {', '.join(wrong)}: its weights, "
                "or numbers in the request, are too large for this input"
            )
            request.vfm.replied.fail(not_finite.reason)
            return Failed(not_finite)
        usage = Usage(int(request.queue_s * 1e6), int(request.compute_s * 1e6), request.batch_items)
        return Answer(tensors, usage)

    def _measure(self, request: Request, engine: Engine) -> None:
        """Reply latency: deadlines are met when the reply is sent, not when the batch ends.

        The engine is told of a new peak when no more replies wait, and of the decay every few replies.
        """
        latency = engine.clock() - (request.arrived_at + request.queue_s + request.compute_s)
        self._latency = max(latency, LATENCY_DECAY * self._latency)
        self._unreported += 1
        if self._unreported >= REPORT_EVERY or (self._latency > self._reported and self._inbox.empty()):
            engine.post(partial(engine.set_reply_latency, self._latency))
            self._reported, self._unreported = self._latency, 0


def _is_finite(tensor: Any) -> bool:
    """Whether an output tensor can be an answer; tensors that do not hold floating-point numbers always can."""
    array = np.asarray(tensor)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
