"""The reply threads: decode outcomes and send replies, so that the engine does not wait for either.

Sending a response is a handshake with the server, for which a thread waits without the interpreter's lock. So several
threads send; each answers requests of its own, so that the parts of a reply keep their order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from fmplex_backend.errors import ExecutionFailed, FmplexError, NotFinite
from fmplex_backend.serving.answer_cache import AnswerCache, Tensors
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.queues import drained
from fmplex_backend.types import (
    NO_USAGE,
    REPLY_THREADS,
    Answer,
    Failed,
    Finished,
    Outcome,
    Request,
    Running,
    Runtime,
    Usage,
)

log = logging.getLogger("fmplex")

LATENCY_DECAY = 0.98**REPLY_THREADS  # of a thread's peak reply latency, per reply that it sends
REPORT_EVERY = 4  # replies of a thread; a new peak is reported earlier

Command = Callable[[], None]


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The request has the answer of a former one. It waited for no batch and was in none: its receipt is zeros."""

    tensors: Tensors


class Replies:
    """Outcomes to be answered, in a lane for each thread: `lanes` are to be run, each by a thread."""

    def __init__(self, runtime: Runtime, answers: AnswerCache | None = None) -> None:
        self.answers = answers or AnswerCache(0)
        self.lanes = [Lane(runtime, self.answers, number) for number in range(REPLY_THREADS)]

    def put(self, request: Request, outcome: Outcome | CachedAnswer) -> None:
        """Let an outcome be answered; a Running's value is a part of the reply. Any thread."""
        self.lanes[request.lane].inbox.put((request, outcome))

    def post(self, request: Request, command: Command) -> None:
        """Let the thread that answers a request call a function between two replies. Any thread."""
        self.lanes[request.lane].inbox.put(command)

    def post_last(self, command: Command) -> None:
        """Call a function, on one of the threads, once all that was posted before has been called. Any thread."""

        def pass_on(left: list[Lane]) -> None:
            if left:
                left[0].inbox.put(partial(pass_on, left[1:]))
            else:
                command()

        pass_on(self.lanes)

    def stop(self) -> None:
        """Let the threads end once all that was put before is answered."""
        for lane in self.lanes:
            lane.inbox.put(None)

    def fail_all(self, error: FmplexError) -> None:
        """Answer what is left with an error, once the threads have ended."""
        for lane in self.lanes:
            lane.fail_all(error)


class Lane:
    """A queue of outcomes, and the thread that answers them in order.

    A command is a function that the thread calls between two replies.
    """

    def __init__(self, runtime: Runtime, answers: AnswerCache, number: int) -> None:
        self.runtime, self.answers, self.number = runtime, answers, number
        self.inbox: SimpleQueue[tuple[Request, Outcome | CachedAnswer] | Command | None] = SimpleQueue()
        self._waits = True  # for something to answer
        self.when_idle: Command = _nothing
        self._latency = 0.0  # peak with exponential decay, in seconds
        self._reported = 0.0  # what the engine knows of it
        self._unreported = 0  # replies since then

    def run_forever(self, engine: Engine) -> None:
        """Answer until told to stop, and tell the engine how long replies take."""
        while (item := self._next()) is not None:
            if not isinstance(item, tuple):
                item()
                continue
            request, outcome = item
            try:
                self._answer(request, outcome)
            except BaseException:
                self.inbox.put(item)  # `fail_all` answers it with the rest
                raise
            if isinstance(outcome, Finished):
                self._measure(request, engine)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to answer."""
        return self._waits and self.inbox.empty()

    def _next(self) -> tuple[Request, Outcome | CachedAnswer] | Command | None:
        if self.inbox.empty():
            self._waits = True
            self.when_idle()
        item = self.inbox.get()
        self._waits = False
        return item

    def fail_all(self, error: FmplexError) -> None:
        """Answer what is left with an error, once the thread has ended."""
        for item in drained(self.inbox):
            if isinstance(item, tuple):
                with suppress(Exception):  # the server may still take the others
                    item[0].resolve(Failed(error))

    def _answer(self, request: Request, outcome: Outcome | CachedAnswer) -> None:
        if isinstance(outcome, Failed):
            request.resolve(outcome)
        elif request.resolved:  # a former part failed, or the backbone is going down
            return
        elif isinstance(outcome, Running):
            self._answer_part(request, outcome.value)
        elif isinstance(outcome, CachedAnswer):
            request.resolve(Answer(outcome.tensors, NO_USAGE))
        else:
            answer = self._decode(request, outcome.value)
            request.resolve(answer)
            if isinstance(answer, Answer):
                self._keep(request, answer)

    def _keep(self, request: Request, answer: Answer) -> None:
        """Keep an answer that was sent for others who ask for the same, if its task wants that."""
        try:
            self.answers.keep(request, answer.tensors)
        except Exception:  # such as a lack of memory for the copy
            log.exception("keeping an answer of %s", request.vfm.name)

    def _answer_part(self, request: Request, value: Any) -> None:
        part = self._decode(request, value)
        if isinstance(part, Failed):
            request.resolve(part)  # the engine does not queue it again
            return
        try:
            request.send_part(part)
        except FmplexError as error:
            request.resolve(self._failed(request, error))

    def _decode(self, request: Request, value: Any) -> Answer | Failed:
        reply = decoded(self.runtime, request, value)
        return self._failed(request, reply.error) if isinstance(reply, Failed) else reply

    def _failed(self, request: Request, error: FmplexError) -> Failed:
        request.vfm.replied[self.number].fail(error.reason)
        return Failed(error)

    def _measure(self, request: Request, engine: Engine) -> None:
        """Reply latency: deadlines are met when the reply is sent, not when the batch ends.

        The engine is told of a new peak when no more replies wait, and of the decay every few replies.
        """
        latency = engine.clock() - (request.arrived_at + request.queue_s + request.compute_s)
        self._latency = max(latency, LATENCY_DECAY * self._latency)
        self._unreported += 1
        if self._unreported >= REPORT_EVERY or (self._latency > self._reported and self.inbox.empty()):
            engine.post(partial(engine.set_reply_latency, self.number, self._latency))
            self._reported, self._unreported = self._latency, 0


def decoded(runtime: Runtime, request: Request, value: Any) -> Answer | Failed:
    """The answer of a Finished's or a Running's value."""
    try:
        tensors = runtime.decode(request, value)
        wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    except Exception as error:  # also where an installed package's decoder gives something else than tensors
        return Failed(ExecutionFailed(f"the decoder of {request.vfm.name!r} raised {type(error).__name__}: {error}"))
    if wrong:
        return Failed(
            NotFinite(
                f"the answer of {request.vfm.name!r} holds NaN or infinite numbers in {', '.join(wrong)}: its weights, "
                "or numbers in the request, are too large for this input"
            )
        )
    usage = Usage(int(request.queue_s * 1e6), int(request.compute_s * 1e6), request.batch_items)
    return Answer(tensors, usage)


def _nothing() -> None:
    """Nobody waits for a thread to be idle."""


def _is_finite(tensor: Any) -> bool:
    """Whether an output tensor can be an answer; tensors that do not hold floating-point numbers always can."""
    array = np.asarray(tensor)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
