"""Shadows: versions that get copies of requests. Their answers are compared with those that clients got, and dropped.

A copy is made once the task's reply is sent. A thread of its own prepares the copies, the engine runs them in spare
time (`serving/spare.py`), and the same thread decodes and compares: no other thread waits for a shadow, or calls its
code but for the pass. While many copies wait for spare time, further requests are not copied: all that such a request
costs is a look at a number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from time import thread_time
from typing import Any

from fmplex_backend.errors import ExecutionFailed, FmplexError
from fmplex_backend.serving.candidates import Candidate
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.replies import decoded
from fmplex_backend.types import Answer, Failed, Finished, Outcome, Reply, Request, Runtime, Send

log = logging.getLogger("fmplex")

MOST_COPIES = 32  # of all tasks, that wait or run
MOST_BYTES = 64 << 20  # of their inputs
JOIN_S = 2.0

Command = Callable[[], None]


class Shadowing:
    """Makes copies, and what becomes of them."""

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self.runtime, self.engine = runtime, engine
        self._inbox: SimpleQueue[Command | None] = SimpleQueue()
        self._lock = threading.Lock()  # of these two
        self._copies = 0
        self._bytes = 0
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run_forever, name="fmplex-shadow", daemon=True)

    def start(self) -> None:
        """Start the thread. Whatever a shadow's code does, it does not end the process."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is left is dropped."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(JOIN_S)  # a decoder may hang: it is a daemon

    # -- the threads that take requests in, and those that answer

    def copying(
        self, shadow: Candidate, inputs: Mapping[str, Any], size: int, parameters: Mapping[str, Any], send: Send
    ) -> Send:
        """What sends a request's replies and copies it, if there is room for its copy now.

        Args:
            size: bytes of the inputs.
        """
        if shadow.vfm is None or shadow.vfm.refused is not None:
            return send
        if self._is_full(size):
            with self._lock:
                shadow.compared.dropped += 1
            return send

        def send_and_copy(reply: Reply, final: bool) -> None:
            send(reply, final)
            if final and isinstance(reply, Answer):
                self._copy(shadow, inputs, size, parameters, reply)

        return send_and_copy

    def _copy(
        self, shadow: Candidate, inputs: Mapping[str, Any], size: int, parameters: Mapping[str, Any], served: Answer
    ) -> None:
        with self._lock:
            if self._is_full(size):
                shadow.compared.dropped += 1
                return
            self._copies += 1
            self._bytes += size
        self._inbox.put(partial(self._prepare, shadow, inputs, size, parameters, served))

    def _is_full(self, size: int) -> bool:
        return self._copies >= MOST_COPIES or self._bytes + size > MOST_BYTES

    # -- the engine thread

    def put(self, request: Request, outcome: Outcome) -> None:
        """Take the outcome of a copy."""
        self._inbox.put(partial(self._resolve, request, outcome))

    # -- the thread of its own

    def _run_forever(self) -> None:
        while (command := self._inbox.get()) is not None:
            try:
                command()
            except BaseException as error:  # a package's decoder may raise SystemExit
                self._say(f"{type(error).__name__}: {error}", error)

    def _prepare(
        self,
        shadow: Candidate,
        inputs: Mapping[str, Any],
        size: int,
        parameters: Mapping[str, Any],
        served: Answer,
    ) -> None:
        vfm = shadow.vfm
        assert vfm is not None, "nothing is copied for a version that is refused"
        send = partial(self._compare, shadow, size, served)
        request = Request(vfm, inputs, (), self.engine.clock(), send, parameters=parameters, input_bytes=size)
        request.extensions = vfm.extensions
        start = thread_time()
        try:
            self.runtime.prepare(request)
        except BaseException as error:
            request.resolve(Failed(_as_failure(error)))
            return
        request.preparation_s = thread_time() - start
        vfm.taken_bytes += request.bytes
        self.engine.add_request(request)

    def _resolve(self, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Finished):
            try:
                request.resolve(decoded(self.runtime, request, outcome.value))
            except BaseException as error:
                request.resolve(Failed(_as_failure(error)))
        elif isinstance(outcome, Failed):
            request.resolve(outcome)

    def _compare(self, shadow: Candidate, size: int, served: Answer, reply: Reply, final: bool) -> None:
        with self._lock:
            self._copies -= 1
            self._bytes -= size
        compare, found = shadow.compare, shadow.compared
        assert compare is not None, "only what can be compared is copied"
        try:
            if isinstance(reply, Failed):
                raise reply.error
            agreed = compare(served.tensors, reply.tensors)
        except BaseException as error:
            reason = _as_failure(error).reason
            found.failures[reason] = found.failures.get(reason, 0) + 1
            self._say(f"a copy for version {shadow.spec.number} of {shadow.beside.name!r}: {error}", error)
        else:
            found.requests += 1
            found.items += len(agreed)
            found.agreed += sum(agreed)

    def _say(self, text: str, error: BaseException) -> None:
        """Log a text the first time, with the traceback of an error that is none of FMplex's."""
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            log.warning("shadow: %s", text, exc_info=None if isinstance(error, FmplexError) else error)


def _as_failure(error: BaseException) -> FmplexError:
    return error if isinstance(error, FmplexError) else ExecutionFailed(f"{type(error).__name__}: {error}")
