"""The loop of a backbone: admit, schedule, run, settle, hand over.

One thread runs `step` and owns every queue, account and adapter. The others post to its inbox: a request, or a
function to be called between two batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from queue import Empty, SimpleQueue

from fmplex_backend.errors import Cancelled, ExecutionFailed, FmplexError, ShuttingDown
from fmplex_backend.scheduling import CostModel, Scheduler
from fmplex_backend.types import Failed, Finished, Outcome, Pass, Request, Running, Runtime, Work
from fmplex_backend.vfm import Vfm

Command = Callable[[], None]
HandOver = Callable[[Request, Finished | Failed], None]


class BackboneCounts:
    """Plain numbers of the engine thread; the metrics thread reads them."""

    def __init__(self) -> None:
        self.batches = 0
        self.passes = 0
        self.items = 0
        self.busy_s = 0.0
        self.broken_passes = 0


class Engine:
    """Runs batches of many vFMs over one runtime.

    Args:
        hand_over: takes each request's one outcome; must not block.
        clock: seconds; requests' arrival is on the same clock.
    """

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
        self.counts = BackboneCounts()
        self.vfms: set[Vfm] = set()
        self.stopping = False
        self._inbox: SimpleQueue[Request | Command] = SimpleQueue()
        self._in_flight: dict[Request, None] = {}
        self._running: list[Request] = []  # of the batch at hand: those that need another step

    # -- any thread

    def post(self, message: Request | Command) -> None:
        """Hand the engine a request, or a function to call between two batches."""
        self._inbox.put(message)

    # -- the engine thread

    def run_forever(self) -> None:
        """Step until told to stop and nothing is left."""
        while not (self.stopping and not self.scheduler.queued and self._inbox.empty()):
            self.step()

    def step(self, *, wait: bool = True) -> bool:
        """One round; False where there was nothing to run."""
        self._admit(wait=wait and not self.scheduler.queued)
        batch = self.scheduler.choose(self.clock())
        if not batch:
            return False
        self._in_flight = dict.fromkeys(batch)
        self.counts.batches += 1
        self.counts.items += batch[0].batch_items
        portions: list[tuple[Request, Work]] = []
        elapsed = 0.0
        for done, seconds in self._timed(self._run(batch)):
            self._answer(done)
            portions += done.portions
            elapsed += seconds
        self._settle(batch, portions, elapsed)
        return True

    def _admit(self, *, wait: bool) -> None:
        if wait:
            self._receive(self._inbox.get())
        for _ in range(self._inbox.qsize()):  # what a command posts again waits for the next round
            try:
                self._receive(self._inbox.get_nowait())
            except Empty:
                break

    def _receive(self, message: Request | Command) -> None:
        if not isinstance(message, Request):
            message()
        elif message.vfm.refused is not None:
            message.vfm.taken += 1
            self._give_up(message, message.vfm.refused)
        elif message.vfm in self.vfms:
            self.scheduler.admit(message)
        else:  # retired while the request was being prepared: its adapter's place may be another's by now
            message.vfm.taken += 1
            self._give_up(message, ShuttingDown(f"the task {message.vfm.name!r} was removed or moved"))

    def _give_up(self, request: Request, error: FmplexError) -> None:
        request.vfm.engine.fail(error.reason)
        self.hand_over(request, Failed(error))

    def _run(self, batch: list[Request]) -> Iterator[Pass]:
        """The batch's passes. One that breaks off is tried again request by request, so that only the culprit fails."""
        for request in batch:
            request.extensions = request.vfm.extensions
        try:
            yield from self.runtime.run(batch)
            if forgotten := sum(request in self._in_flight for request in batch):
                raise RuntimeError(f"the runtime left {forgotten} requests without an outcome")
        except Exception as error:
            self.counts.broken_passes += 1
            if self.runtime.is_fatal(error):
                raise  # ends the thread, and that the process, with every request answered
            left = [request for request in batch if request in self._in_flight]
            alone = len(batch) == 1
            failed = ExecutionFailed(f"the pass over the backbone raised {type(error).__name__}: {error}")
            yield Pass(
                None,
                [(request, request.work) for request in left],
                [(request, Failed(failed)) for request in left] if alone else [],
            )
            if not alone:
                for request in left:
                    yield from self._run([request])

    def _timed(self, passes: Iterator[Pass]) -> Iterator[tuple[Pass, float]]:
        """Each pass and its seconds, which the cost model learns from."""
        start = self.clock()
        for done in passes:
            seconds = self.clock() - start
            self.counts.passes += 1
            self.counts.busy_s += seconds
            if done.shape is not None:
                self.cost.observe(done.shape, len(done.portions), seconds, done.worked)
            yield done, seconds
            start = self.clock()

    def _answer(self, done: Pass) -> None:
        """Hand over what a pass has finished; the rest of the batch may go on."""
        now = self.clock()
        for request, outcome in done.outcomes:
            self._count(request, outcome, now)
            self._in_flight.pop(request, None)
            if isinstance(outcome, Running):
                request.work = outcome.next_work
                self._running.append(request)
            else:
                self.hand_over(request, outcome)

    def _settle(self, batch: list[Request], portions: list[tuple[Request, Work]], elapsed: float) -> None:
        """Correct the tags by what the batch took, as a whole, and queue those again that need another step.

        That short and long texts need passes of their own, and that answering the short ones slows the pass of the
        long ones, is due to their being together: all bear it in proportion, not whoever is last.
        """
        self.scheduler.measure(portions, elapsed)
        self.scheduler.settle(batch)
        for request in self._running:
            self.scheduler.requeue(request)
        self._running = []

    def _count(self, request: Request, outcome: Outcome, now: float) -> None:
        counts = request.vfm.engine
        request.compute_s += now - request.taken_at
        if isinstance(outcome, Running):
            return
        request.queue_s = now - request.arrival - request.compute_s
        counts.requests += 1
        counts.items += request.work.items
        counts.queue_s += request.queue_s
        counts.compute_s += request.compute_s
        counts.misses += now > request.deadline
        if isinstance(outcome, Failed):
            counts.fail(outcome.error.reason)

    # -- commands, on the engine thread

    def attach(self, vfm: Vfm, extensions: object, *, adapted: bool) -> None:
        """Let a vFM serve with these extensions from the next batch on."""
        former = vfm.extensions if vfm in self.vfms else None
        self.runtime.attach(extensions)
        vfm.extensions, vfm.adapted, vfm.refused = extensions, adapted, None
        self.vfms.add(vfm)
        if former is not None and former is not extensions:
            self.runtime.detach(former)

    def refuse(self, vfm: Vfm, error: FmplexError) -> None:
        """Answer a vFM's requests with an error, those that wait and those to come."""
        vfm.refused = error
        waiting = list(vfm.queue)
        self.scheduler.discard(vfm, waiting)
        for request in waiting:
            self._give_up(request, error)

    def retire(self, vfm: Vfm) -> None:
        """Forget a vFM once its queue has run empty."""
        if vfm.queue:
            self.post(lambda: self.retire(vfm))
        elif vfm in self.vfms:
            self.vfms.discard(vfm)
            self.runtime.detach(vfm.extensions)

    def stop(self) -> None:
        """Return from `run_forever` once everything queued has run."""
        self.stopping = True

    def waiting(self, since: float, most: int) -> list[Request]:
        """Up to `most` queued requests that arrived before `since`."""
        queued = (request for vfm in self.vfms for request in vfm.queue if request.arrival < since)
        return list(islice(queued, most))

    def cancel(self, requests: Sequence[Request]) -> None:
        """Drop requests that still wait; those that run are answered as usual."""
        for request in requests:
            if request in request.vfm.queue:
                self.scheduler.discard(request.vfm, [request])
                self._give_up(request, Cancelled("the client cancelled the request"))

    def abandon(self, error: FmplexError) -> None:
        """Fail everything queued, posted or in flight: the last act of an engine that cannot go on."""
        left = [*self._in_flight, *self._running, *(request for vfm in self.vfms for request in vfm.queue)]
        self._in_flight, self._running = {}, []
        while not self._inbox.empty():
            message = self._inbox.get_nowait()
            if isinstance(message, Request):
                left.append(message)
        for vfm in self.vfms:
            self.scheduler.discard(vfm, list(vfm.queue))
        for request in left:
            self.hand_over(request, Failed(error))
