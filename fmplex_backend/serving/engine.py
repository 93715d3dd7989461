"""The loop of a backbone: admit, schedule, run, hand over, settle.

One thread runs `step` and owns every queue, account and adapter. Other threads post to its inbox: a request, or a
command, which is a function that the engine calls between two batches.

Where passes are queued on a device, the next batch is chosen and queued shortly before the one at hand ends, so that
the device need not wait for the interpreter. Commands are called while nothing is queued there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from heapq import nsmallest
from queue import Empty, SimpleQueue
from typing import Protocol

from fmplex_backend.errors import Cancelled, ExecutionFailed, FmplexError, ShuttingDown, TimeLimit
from fmplex_backend.scheduling import CostModel, Scheduler
from fmplex_backend.scheduling.rows import BatchRows
from fmplex_backend.serving.accounts import Closed, with_closed
from fmplex_backend.serving.batch import AtWork, BackboneCounts, Batch, isolated, raising
from fmplex_backend.serving.queues import drained
from fmplex_backend.serving.sequences import Sequences
from fmplex_backend.serving.spare import Spare
from fmplex_backend.types import (
    ARRIVED_AT,
    Extensions,
    Failed,
    Finished,
    Outcome,
    Pass,
    Request,
    Running,
    Runtime,
    Sharing,
    Vfm,
    Work,
)

EARLY = 0.95  # of a batch's predicted time: the next one is there if it ends this much sooner
LIMITS_EVERY_S = 0.05  # how often time limits are looked at; a step may be shorter
ROOM_EVERY_S = 0.02  # how often requests are asked about of which none has room, if no message comes
LEAD_GAIN = 0.1  # of the exponential moving average of the seconds that starting a batch takes

Command = Callable[[], None]
Message = tuple[Request, ...] | Command  # requests that arrive as one are in the same batch, where there is room
HandOver = Callable[[Request, Outcome], None]


class Preparer(Protocol):
    """What prepares requests, on threads of its own."""

    def prepare_again(self, request: Request) -> None:
        """Prepare a request for the present extensions of its vFM, then add it to the engine. Must not block."""

    def resume(self) -> None:
        """Look again which vFMs are ahead of their share. Must not block."""


class Engine:
    """Runs batches of many vFMs over one runtime.

    Args:
        hand_over: takes a request's one Finished or Failed, and before it each Running that has a part of the reply;
            must not block.
        clock: seconds; `Request.arrived_at` is on the same clock.

    `preparer` is set before the engine runs.
    """

    preparer: Preparer

    def __init__(
        self,
        runtime: Runtime,
        scheduler: Scheduler,
        cost: CostModel,
        hand_over: HandOver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runtime, self.scheduler, self.cost = runtime, scheduler, cost
        self.hand_over, self.clock = hand_over, clock
        runtime.post = self.post
        self.counts = BackboneCounts()
        self.spare = Spare(cost, scheduler.max_items, runtime.has_room)
        self.vfms: set[Vfm] = set()
        self.closed: tuple[Closed, ...] = ()  # accounts of vFMs that were retired; replaced as a whole
        self.stopping = False
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._command: Command | None = None  # received while a batch ran
        self._waits = False  # for a message
        self.when_idle: Command = _nothing
        self._next_batch: Batch | None = None  # queued on the device behind the batch at hand
        self._lead_s = 0.0  # what starting a batch takes
        self._reply_latencies: dict[int, float] = {}  # by reply thread
        self._last_pass_at = 0.0
        self._limits_at = 0.0  # when time limits are looked at next
        self.at_work = AtWork()  # replaced as a whole, for other threads to read
        self._in_flight: dict[Request, None] = {}  # of the batch at hand: those without an outcome
        self._running: list[Request] = []  # of the batch at hand: those that need another step
        self._retiring: dict[Vfm, None] = {}  # once their queues are empty
        self._sequences = Sequences(lambda extensions: self.runtime.detach(extensions))

    # -- any thread

    def add_request(self, request: Request) -> None:
        """Queue a prepared request."""
        self.add_requests([request])

    def add_requests(self, requests: Sequence[Request]) -> None:
        """Queue prepared requests, all before the next batch is chosen."""
        for request in requests:
            request.vfm.arriving.append(request)
        self._inbox.put(tuple(requests))

    @property
    def running(self) -> Sequence[Request]:
        """Requests of the batch at hand, and of the one that is queued behind it, that have no outcome yet."""
        ahead = self._next_batch
        return [*self._in_flight, *(ahead.requests if ahead else ())]

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run."""
        return self._waits and self._inbox.empty()

    def post(self, command: Command) -> None:
        """Let the engine thread call a function between two batches."""
        self._inbox.put(command)

    # -- the engine thread

    def run_forever(self) -> None:
        """Step until told to stop and nothing is left."""
        while not (self.stopping and not self.scheduler.queued and self._inbox.empty() and not self._next_batch):
            self.step()
        self._retire_empty()

    def step(self, *, wait: bool = True) -> bool:
        """Run one batch; False where there was none: nothing is queued, or none of it has room.

        Args:
            wait: where nothing is queued, wait for a message first, and where none has room, for one at the end; but
                not for long, where something else makes a batch possible.
        """
        batch = self._next_batch or self._start_batch(wait=wait)
        self._next_batch = None
        if batch:
            self._in_flight = dict.fromkeys(batch.requests)
            self.at_work = AtWork(self.counts.busy_s, max(batch.started_at, self._last_pass_at))
            if self.runtime.queues_passes:
                self._next_batch = self._start_next(batch)
            passes, broken = self.counts.passes, self.counts.broken_passes
            portions, elapsed = self._run(batch)
            self._settle(batch.requests, portions, elapsed)
            self.at_work = AtWork(self.counts.busy_s)
            self.counts.last_batch_at = now = self.clock()
            if not batch.spare:
                self.spare.busy_until = now
            if self.counts.broken_passes == broken and not batch.spare:  # else its requests ran one by one
                # What is done outside of passes goes on beside those that are queued; a stall there counts little.
                outside = 0.0 if self.runtime.queues_passes else min(now - batch.started_at - elapsed, elapsed)
                self.cost.observe_batch(self.counts.passes - passes, outside)
        self.preparer.resume()
        return bool(batch)

    def _start_batch(self, *, wait: bool) -> Batch | None:
        self._retire_empty()
        self._admit(wait=wait and not self.scheduler.queued)
        now = self.clock()
        batch = self._choose_and_start(now) or self._start(self.spare.choose(now), now, spare=True)
        without_room = self.scheduler.queued or self.spare.due_in(now) == 0.0
        if batch is None and wait and without_room and not self._command:
            self._wait(ROOM_EVERY_S)  # it waits for something to be brought into memory
        return batch

    def _start_next(self, running: Batch) -> Batch | None:
        """Start the next batch behind `running`, as late as it goes: requests that arrive until then may be in it."""
        rows = BatchRows()
        for request in running.requests:
            rows.add(request)
        adapted = len({request.vfm for request in running.requests if request.vfm.adapted})
        end = max(running.started_at, self._last_pass_at) + EARLY * self.cost.batch(rows.total, adapted)
        while not self._command and not any(not vfm.queue for vfm in self._retiring):
            try:
                left = end - self._lead_s - self.clock()
                message = self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
            except Empty:
                return self._choose_and_start(max(end, self.clock()))
            if isinstance(message, tuple):
                self._receive(message)
            else:
                self._command = message
        return None  # what was posted after the command waits for it, as the next batch does for who is retired

    def _choose_and_start(self, at: float) -> Batch | None:
        """Start a batch that will run from `at` on."""
        start = self.clock()
        self._end_late(start)
        batch = self._start(self.scheduler.choose(at), start)
        if batch:
            self._lead_s += LEAD_GAIN * (self.clock() - start - self._lead_s)
        return batch

    def _start(self, requests: list[Request], start: float, *, spare: bool = False) -> Batch | None:
        if not requests:
            return None
        try:
            passes = self.runtime.run(requests)
        except Exception as error:
            passes = raising(error)
        return Batch(requests, passes, start, spare)

    def _admit(self, *, wait: bool) -> None:
        if self._command:
            command, self._command = self._command, None
            command()
        elif wait:
            self._wait(self.spare.due_in(self.clock()))  # until what runs in spare time may
        for _ in range(self._inbox.qsize()):  # a command that posts itself again is not called twice in one step
            try:
                self._receive(self._inbox.get_nowait())
            except Empty:  # `abandon` has emptied it
                break

    def _wait(self, timeout: float | None) -> None:
        """Wait for a message, no longer than `timeout` seconds, and receive it."""
        self._waits = True
        self.when_idle()
        message = None
        with suppress(Empty):
            message = self._inbox.get(timeout=timeout)
        self._waits = False
        if message is not None:
            self._receive(message)

    def _receive(self, message: Message) -> None:
        if not isinstance(message, tuple):
            message()
            return
        for request in message:
            self._receive_request(request)

    def _receive_request(self, request: Request) -> None:
        vfm = request.vfm
        vfm.arriving.popleft()  # the count is what matters: where threads post at once it may be another's request
        if vfm.spare:
            vfm.preparation_s += request.preparation_s
            request.preparation_s = 0.0
        if vfm.refused is not None:
            self._fail(request, vfm.refused)
        elif vfm not in self.vfms:  # retired while the request was being prepared: its extensions are detached
            self._fail(request, _gone(vfm))
        elif request.extensions is not vfm.extensions:  # they were replaced meanwhile
            self.scheduler.charge_refused(request)
            self.preparer.prepare_again(request)
        elif vfm.spare:
            self.spare.add(request)
        else:
            self.scheduler.admit(request)

    def _end_late(self, now: float) -> None:
        """End queued requests whose time is over: with what they have so far, or an error."""
        if now < self._limits_at:
            return
        self._limits_at = now + LIMITS_EVERY_S
        for vfm in self.vfms:
            late = [] if math.isinf(vfm.max_seconds) else [each for each in vfm.queue if each.expires_at <= now]
            if late:
                self.scheduler.discard(vfm, late)
            for request in late:
                end = self._cut_short(request)
                if isinstance(end, FmplexError):
                    self._fail(request, end)
                else:
                    request.queue_s = now - request.arrived_at - request.compute_s
                    self._finish(request, end, now)

    def _cut_short(self, request: Request) -> Finished | FmplexError:
        """How a request ends whose time is over."""
        try:
            value = self.runtime.cut_short(request) if request in self._sequences else None
        except Exception as error:  # the last of its text may be what a tokenizer does not take
            return ExecutionFailed(f"ending the answer of {request.vfm.name!r} raised {type(error).__name__}: {error}")
        return time_limit(request) if value is None else Finished(value)

    def _run(self, batch: Batch) -> tuple[list[tuple[Request, Work]], float]:
        """Run a batch and hand over its outcomes. Returns who took part with how much work, and the seconds."""
        self.counts.batches += 1
        self.counts.items += batch.requests[0].batch_items
        portions: list[tuple[Request, Work]] = []
        elapsed = 0.0
        for done, seconds in self._timed(batch):
            self._hand_over_outcomes(done)
            self._count_shared(done.sharing)
            portions += done.portions
            for request, work in done.portions:
                request.vfm.engine.tokens += work.tokens
            elapsed += seconds
        return portions, elapsed

    def _timed(self, batch: Batch) -> Iterator[tuple[Pass, float]]:
        """Each pass with its seconds, from which the cost model learns.

        What is done between two passes is left out, but where they are queued on a device: it goes on meanwhile.
        """
        start = max(batch.started_at, self._last_pass_at)
        for done in isolated(batch.requests, batch.passes, self.runtime, self._in_flight, self.counts):
            self._last_pass_at = now = self.clock()
            seconds = now - start
            self.counts.passes += 1
            self.counts.busy_s += seconds
            if done.shape is not None and not batch.spare:
                self.cost.observe(done.shape, len(done.portions), seconds, done.worked)
            yield done, seconds
            start = now if self.runtime.queues_passes else self.clock()

    def _hand_over_outcomes(self, done: Pass) -> None:
        """Hand over the replies and parts of replies that a pass made, while the rest of the batch may go on."""
        now = self.clock()
        for request, outcome in done.outcomes:
            request.compute_s += max(0.0, now - request.scheduled_at)  # it may run sooner than predicted
            request.queue_s = now - request.arrived_at - request.compute_s
            self._in_flight.pop(request, None)
            if not isinstance(outcome, Running):
                self._finish(request, outcome, now)
                continue
            request.work, request.rows = outcome.next_work, outcome.next_rows
            self._running.append(request)
            if outcome.value is not None:
                self._meet_deadline(request, now)
                self.hand_over(request, outcome)

    def _meet_deadline(self, request: Request, now: float) -> None:
        """The objective of a reply of several parts is the time to its first one."""
        request.vfm.engine.misses += now > request.deadline
        request.deadline = math.inf

    def _count_shared(self, sharing: Sharing) -> None:
        self.counts.rows_saved += sharing.saved
        for request, rows in sharing.rows.items():
            request.vfm.engine.shared += rows

    def _finish(self, request: Request, outcome: Finished | Failed, now: float) -> None:
        """Count and hand over the outcome of a request that went through the backbone."""
        counts = request.vfm.engine
        counts.requests += 1
        counts.items += request.items
        counts.queue_s += request.queue_s
        counts.compute_s += request.compute_s
        counts.misses += now > request.deadline
        if isinstance(outcome, Failed):
            counts.fail(outcome.error.reason)
        self._forget(request)
        self.hand_over(request, outcome)

    def _settle(self, batch: list[Request], portions: list[tuple[Request, Work]], elapsed: float) -> None:
        """Correct the tags by what the batch took as a whole, then queue the sequences again that need another step.

        All requests bear the batch's seconds in proportion to their work, not those of their own pass: which rows
        share a pass, and that sending the first replies slows the later passes, is not the doing of any one of them.
        """
        self.scheduler.measure(portions, elapsed)
        self.scheduler.settle(batch)
        for request in self._running:
            if request.resolved:  # a part of its reply could not be sent, and its last reply says so
                self._forget(request)
            else:
                self._sequences.add(request)
                (self.spare.add_again if request.vfm.spare else self.scheduler.requeue)(request)
        self._running = []

    def _fail(self, request: Request, error: FmplexError) -> None:
        """Answer a request with an error that is in no queue, and charge what preparing it has taken."""
        if request.preparation_s:
            self.scheduler.charge_refused(request)
        request.vfm.engine.fail(error.reason)
        self._forget(request)
        self.hand_over(request, Failed(error))

    def _forget(self, request: Request) -> None:
        """It has its outcome: what is kept for it is free."""
        request.vfm.given_bytes += request.bytes
        self.runtime.forget(request)
        self._sequences.remove(request)

    # -- commands: called on the engine thread

    def attach(self, vfm: Vfm, extensions: Extensions) -> None:
        """Let a vFM serve with these extensions from the next batch on.

        Requests in its queue were prepared for the former ones. They are prepared again, except those that have run a
        step: the former stay attached for them.
        """
        former = vfm.extensions if vfm in self.vfms else None
        self.runtime.attach(extensions)
        vfm.extensions, vfm.adapted, vfm.refused = extensions, extensions.adapted, None
        self.vfms.add(vfm)
        if former is not None and former is not extensions:
            waiting = [request for request in vfm.queue if request not in self._sequences]
            self.scheduler.discard(vfm, waiting)
            for request in waiting:
                self.preparer.prepare_again(request)
            self._sequences.release(former)  # last, since a device may raise: who waits is in no queue until then

    def refuse(self, vfm: Vfm, error: FmplexError) -> None:
        """Answer a vFM's requests with an error, those that are queued and those to come, until it is attached."""
        vfm.refused = error
        waiting = list(vfm.queue)
        self.scheduler.discard(vfm, waiting)
        for request in waiting:
            self._fail(request, error)

    def retire(self, vfm: Vfm) -> None:
        """Remove a vFM and detach its extensions once its queue is empty; what it has in spare time is dropped."""
        for request in self.spare.take(vfm):
            self._fail(request, _gone(vfm))
        if vfm.queue:
            self._retiring[vfm] = None
        elif vfm in self.vfms:
            self.vfms.discard(vfm)
            self.closed = with_closed(self.closed, vfm)
            self.runtime.detach(vfm.extensions)

    def _retire_empty(self) -> None:
        """Retire those whose queues have run empty since they were to be."""
        for vfm in [each for each in self._retiring if not each.queue]:
            del self._retiring[vfm]
            self.retire(vfm)

    def set_reply_latency(self, lane: int, seconds: float) -> None:
        """Allow this long from the end of a batch to a reply thread's last reply where a deadline is to be met."""
        self._reply_latencies[lane] = seconds
        self.scheduler.reply_latency = max(self._reply_latencies.values())

    def stop(self) -> None:
        """Return from `run_forever` once everything queued has run."""
        self.stopping = True

    def waiting(self, since: float, most: int, after: float = -math.inf) -> list[Request]:
        """The `most` oldest of the queued requests that arrived before `since`, and later than `after`."""
        queued = (request for vfm in self.vfms for request in vfm.queue if after < request.arrived_at < since)
        return nsmallest(most, queued, key=ARRIVED_AT)

    def cancel(self, requests: Sequence[Request]) -> None:
        """Drop those of the requests that are queued; one that is not has its outcome, or gets it as usual."""
        for request in requests:
            if request in request.vfm.queue:
                self.scheduler.discard(request.vfm, [request])
                self._fail(request, Cancelled("the client cancelled the request"))

    # -- any thread, once the engine thread has ended or hangs

    def abandon(self, error: FmplexError) -> None:
        """Fail everything that is posted, queued or in flight."""
        ahead = self._next_batch.requests if self._next_batch else []
        vfms = list(self.vfms)  # as it is now: an engine that hangs may go on meanwhile
        queued = [request for vfm in vfms for request in list(vfm.queue)]
        left = [*self._in_flight, *self._running, *ahead, *queued, *self.spare.waiting]
        self.spare.waiting.clear()
        self._in_flight.clear()  # also for `isolated`, which an engine that hangs may go on with
        self._running, self._next_batch = [], None
        for message in drained(self._inbox):
            if isinstance(message, tuple):
                for request in message:
                    request.vfm.arriving.popleft()
                left += message
        for vfm in vfms:
            self.scheduler.discard(vfm, list(vfm.queue))
        for request in left:
            request.vfm.given_bytes += request.bytes
            self.hand_over(request, Failed(error))


def time_limit(request: Request) -> TimeLimit:
    """What a request gets whose time is over before there is an answer."""
    limit = request.vfm.max_seconds
    return TimeLimit(
        f"{request.vfm.name!r} gives a request {limit:g} s (its max_seconds), and these are over: send less at a time, "
        "or raise it"
    )


def _gone(vfm: Vfm) -> ShuttingDown:
    return ShuttingDown(f"the task {vfm.name!r} was removed or moved")


def _nothing() -> None:
    """Nobody waits for the engine to be idle."""
