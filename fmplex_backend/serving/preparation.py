"""Prepares requests for the engine: at once where that is quick, else on worker threads that take turns among the vFMs.

    Intake -> Preparation.submit -> (a queue for each vFM -> a worker) -> Runtime.prepare -> Engine.add_request

Requests of one vFM keep their order, and one worker at a time prepares them: a task whose texts take seconds each holds
up nobody else. The seconds are measured and charged to the vFM with the request (`Scheduler`). A vFM that is ahead of
its share waits here while others have requests waiting.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import nsmallest
from itertools import chain, islice
from time import thread_time

from fmplex_backend.errors import Cancelled, ExecutionFailed, FmplexError, InvalidRequest, QueueFull
from fmplex_backend.serving.engine import Engine, time_limit
from fmplex_backend.types import ARRIVED_AT, Failed, Request, Runtime, Vfm

WORKERS = 2  # so many vFMs may have slow requests before those of another wait for them
# Inputs up to this size are prepared at once, where those before took no longer than SMALL_S, and the family's small
# ones are quick.
SMALL_BYTES = 2048
SMALL_S = 1e-3
SMALL_RATE = 0.1  # of the exponential moving average of a vFM's seconds for a small request
SMALL_MOST_S = 5e-3  # more counts as this much, so that one that was held up does not make a vFM slow
AHEAD_S = 0.25  # of its share by which a vFM may be ahead and have more requests prepared

Add = Callable[[Request], None]


class Preparation:
    """Queues of requests to be prepared, and what their workers do. Every request ends in one outcome."""

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self.runtime, self.engine = runtime, engine
        engine.preparer = self
        self._lock = threading.Lock()  # of what follows, and of the vFMs' fields that say so
        self._changed = threading.Condition(self._lock)
        self._ready: deque[Vfm] = deque()  # have requests that wait, and no worker
        self._at_work: set[Vfm] = set()
        self._held = False  # some that are ready may be ahead of their share
        self._stopping = False
        self._ended: FmplexError | None = None

    # -- any thread

    def submit(self, request: Request) -> None:
        """Take a request in, and prepare it now if that is quick; raises QueueFull or InvalidRequest."""
        if self._take_in(request):
            self._prepare(request)

    def submit_together(self, requests: Iterable[Request]) -> None:
        """Take in requests that came as one: those that are prepared now reach the engine at once.

        One that its vFM has no room for is answered with that.
        """
        prepared: list[Request] = []
        for request in requests:
            try:
                if self._take_in(request):
                    self._prepare(request, prepared.append)
            except FmplexError as error:
                request.vfm.intake.fail(error.reason)
                request.resolve(Failed(error))
        if prepared:
            self.engine.add_requests(prepared)
            for request in prepared:
                self._check_ended(request)

    def prepare_again(self, request: Request) -> None:
        """Prepare a request for the extensions that have replaced those it was prepared for."""
        with self._lock:
            self._queue(request)
        self._check_ended(request)

    def resume(self) -> None:
        """Look again which vFMs are ahead of their share."""
        if self._held:
            with self._lock:
                self._changed.notify_all()

    @property
    def is_waiting(self) -> bool:
        """Whether any request is here."""
        return bool(self._ready or self._at_work)

    def waiting(self, since: float, most: int, after: float = -math.inf) -> list[Request]:
        """The `most` oldest requests that no worker has begun with, arrived before `since` and later than `after`."""
        with self._lock:
            left = chain.from_iterable(map(self._not_begun, (*self._ready, *self._at_work)))
            return nsmallest(most, (each for each in left if after < each.arrived_at < since), key=ARRIVED_AT)

    def cancel(self, request: Request) -> bool:
        """Drop a request that waits here and that no worker has begun with; whether it was one."""
        vfm, error = request.vfm, Cancelled("the client cancelled the request")
        with self._lock:
            if request not in self._not_begun(vfm):
                return False
            vfm.preparing.remove(request)
            if not vfm.preparing:
                self._ready.remove(vfm)
            self._count_failure(request, error)
        self._hand_back(request, error)
        return True

    # -- the workers

    def run_forever(self) -> None:
        """Prepare what waits, vFM by vFM, until stopped and nothing is left."""
        while self.prepare_next():
            pass

    def prepare_next(self, *, wait: bool = True) -> bool:
        """Prepare one request; False where it is stopped and none is left.

        Args:
            wait: for one that may be prepared, if there is none; else False.
        """
        vfm = self._next(wait=wait)
        if vfm is None:
            return False
        request = vfm.preparing[0]  # stays there meanwhile: those that come later must not overtake it
        self._prepare(request, queued=True)
        with self._lock:
            self._at_work.remove(vfm)
            if vfm.preparing:
                self._ready.append(vfm)
                self._changed.notify()
        return True

    def stop(self) -> None:
        """Return from `run_forever` once what waits is prepared."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()

    # -- once no worker is left, or they hang

    def fail_all(self, error: FmplexError) -> None:
        """Answer with this error what waits here, and what may still come."""
        with self._lock:
            self._ended = error
            left = [request for vfm in (*self._ready, *self._at_work) for request in vfm.preparing]
            for vfm in (*self._ready, *self._at_work):
                vfm.preparing.clear()
            self._ready.clear()
        for request in left:
            self.engine.hand_over(request, Failed(error))

    # -- steps of these

    def _take_in(self, request: Request) -> bool:
        """Take a request in: True where it is to be prepared now, else it waits for a worker."""
        vfm = request.vfm
        with self._lock:
            _check_room(vfm, request)
            vfm.taken_bytes += request.input_bytes
            now = self._may_be_now(request)
            if not now:
                self._queue(request)
        return now

    def _may_be_now(self, request: Request) -> bool:
        vfm = request.vfm
        small = request.input_bytes <= SMALL_BYTES and vfm.small_s <= SMALL_S
        return small and self.runtime.quick_when_small and not vfm.preparing and self._has_share(vfm)

    def _is_late(self, vfm: Vfm) -> bool:
        """Whether the time of its first request is over: it is answered with that at once."""
        return vfm.preparing[0].expires_at <= self.engine.clock()

    def _has_share(self, vfm: Vfm) -> bool:
        return self.engine.scheduler.ahead_s(vfm) <= AHEAD_S

    def _queue(self, request: Request) -> None:
        vfm = request.vfm
        vfm.preparing.append(request)
        if len(vfm.preparing) == 1 and vfm not in self._at_work:
            self._ready.append(vfm)
            self._changed.notify()

    def _next(self, *, wait: bool) -> Vfm | None:
        """The vFM that is the least ahead of its share, the longest waiting of several; None: there will be none."""
        with self._lock:
            while True:
                self._held = True  # before looking: what the engine changes from now on wakes this thread
                first = next(filter(self._is_late, self._ready), None)
                first = first or min(self._ready, key=self.engine.scheduler.ahead_s, default=None)
                if first is not None and (self._stopping or self._is_late(first) or self._has_share(first)):
                    self._ready.remove(first)
                    self._at_work.add(first)
                    return first
                self._held = first is not None
                if self._stopping or not wait:
                    return None
                self._changed.wait()

    def _prepare(self, request: Request, add: Add | None = None, *, queued: bool = False) -> None:
        vfm = request.vfm
        error: FmplexError | None = None
        start = thread_time()
        request.extensions, former_bytes = vfm.extensions, request.prepared_bytes
        request.prepared_bytes = 0
        try:
            if request.expires_at <= self.engine.clock():
                raise time_limit(request)
            self.runtime.prepare(request)
            _check_size(request)
        except FmplexError as raised:
            error = raised
        except Exception as raised:
            error = ExecutionFailed(f"preparing the request raised {type(raised).__name__}: {raised}")
        seconds = thread_time() - start
        request.preparation_s += seconds
        with self._lock:
            vfm.taken_bytes += request.prepared_bytes - former_bytes
            if request.input_bytes <= SMALL_BYTES:
                counted = min(seconds, SMALL_MOST_S)
                known = not math.isinf(vfm.small_s)
                vfm.small_s = vfm.small_s + SMALL_RATE * (counted - vfm.small_s) if known else counted
            if queued and vfm.preparing:  # else `fail_all` has taken it
                vfm.preparing.popleft()
            if error is None:
                (add or self.engine.add_request)(request)
            else:
                self._count_failure(request, error)
        if error is not None:
            self._hand_back(request, error)
        self._check_ended(request)

    def _not_begun(self, vfm: Vfm) -> Iterator[Request]:
        """Of a vFM's requests those that no worker is preparing. Under the lock."""
        return islice(vfm.preparing, int(vfm in self._at_work), None)

    def _count_failure(self, request: Request, error: FmplexError) -> None:
        """Count a request that does not go on to the engine, and free its part of the queue. Under the lock."""
        request.vfm.taken_bytes -= request.bytes
        request.vfm.prepared.fail(error.reason)

    def _hand_back(self, request: Request, error: FmplexError) -> None:
        """Answer a request with an error, and charge its vFM for what preparing it has taken."""
        self.engine.post(partial(self.engine.scheduler.charge_refused, request))
        self.engine.hand_over(request, Failed(error))

    def _check_ended(self, request: Request) -> None:
        if self._ended is not None:  # ended meanwhile: the engine and the reply thread may have, too
            request.resolve(Failed(self._ended))


def _check_room(vfm: Vfm, request: Request) -> None:
    """Raise QueueFull or InvalidRequest where a request does not fit into its vFM's queue."""
    if request.input_bytes > vfm.max_queue_bytes:
        raise _too_large(request, "holds", request.input_bytes)
    if (depth := vfm.depth) >= vfm.max_queue:
        raise QueueFull(
            f"{vfm.name!r} has {depth} requests waiting, its max_queue is {vfm.max_queue}; "
            "send them more slowly or raise it"
        )
    if vfm.queue_bytes + request.input_bytes > vfm.max_queue_bytes:
        raise QueueFull(
            f"{vfm.name!r} has requests of {vfm.queue_bytes} bytes waiting, its max_queue_bytes is "
            f"{vfm.max_queue_bytes}; send them more slowly or raise it"
        )


def _check_size(request: Request) -> None:
    """Raise InvalidRequest where a prepared request takes more memory than its vFM may ever have."""
    if request.bytes > request.vfm.max_queue_bytes:
        raise _too_large(request, "becomes", request.bytes)


def _too_large(request: Request, verb: str, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"the request {verb} {size} bytes, max_queue_bytes of {request.vfm.name!r} is {request.vfm.max_queue_bytes}; "
        "send fewer or shorter items in one request, or raise it"
    )
