"""The virtual queues of a backbone, and the loop that forms a batch from them.

One set of queues serves all policies. A policy says where a vFM's head stands (`rank`) and whether a batch
may grow (`joins`); tags, account and settlement are the same for all.

The tags are those of start-time fair queueing (Goyal, Vin, Cheng 1997): a request arriving at a vFM gets the
start tag S = max(V, F) and the finish tag F = S + c/w. Inside a backlogged vFM requests follow each other
without a gap, so one number per vFM, the start tag of its head, holds them all: taking the head moves it on
by c/w, and settling puts what was measured in the place of c. A request that is never taken is never charged.
What follows for fairness is proved in docs/tune-fairness.md.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.types import NO_WORK, Request, Work
from fmplex_backend.vfm import Vfm

_ORDER = attrgetter("order")
MANY = 16  # this part of Bmax
MARGIN = 1.05  # where a deadline is at stake, an estimate is taken to be this much too short


class Scheduler:
    """Queues, accounts and batch forming. Every operation is O(log n) in the number of backlogged vFMs.

    Args:
        cost: estimates of service time, in seconds.
        max_items: Bmax, the most rows of a batch.
        max_tokens: the most tokens of a batch. A single request over it still runs, alone.
    """

    def __init__(self, cost: CostModel, *, max_items: int, max_tokens: int | None = None) -> None:
        self.cost = cost
        self.max_items = max_items
        self.max_tokens = max_tokens or math.inf
        self.virtual_time = 0.0
        self.queued = 0
        self.backlogged = 0
        self.urgent = 0  # queued rows that have a deadline
        self.way_back = 0.0  # seconds from the end of a batch until its last answer is sent; the reply thread's
        self._heap: list[tuple[float, int, int, Vfm]] = []  # rank, order of the head, id of the entry
        self._entries = 0
        self._admitted = 0

    # -- what a policy supplies

    def rank(self, vfm: Vfm) -> float:
        """Where the vFM's head stands; the smallest goes first, ties by arrival."""
        raise NotImplementedError

    def joins(self, batch: Sequence[Request], finish: float, limit: float) -> bool:
        """Whether one more request may join a batch that holds some.

        Args:
            finish: when, predicted with a margin, the batch with it is answered.
            limit: the earliest deadline in the batch that is still kept without it; infinite where many with
                deadlines of their own wait behind.
        """
        raise NotImplementedError

    # -- the queues

    def admit(self, request: Request) -> None:
        """Put a request at the tail of its vFM's queue."""
        slo = request.slo if request.slo is not None else request.vfm.slo
        request.deadline = math.inf if slo is None else request.arrival + slo
        self._admitted += 1
        request.order = self._admitted
        request.vfm.queue.append(request)
        self._queued(request)

    def requeue(self, request: Request) -> None:
        """Put a settled, running sequence back before all that came after it, for its next step."""
        vfm = request.vfm
        vfm.taken -= 1
        vfm.queue.insert(bisect_left(vfm.queue, request.order, key=_ORDER), request)
        self._queued(request)

    def discard(self, vfm: Vfm, requests: Collection[Request]) -> None:
        """Drop queued requests of a vFM: they were charged nothing, so there is nothing to give back."""
        ids = {id(request) for request in requests}
        kept = [request for request in vfm.queue if id(request) not in ids]
        self._left(vfm, [request for request in vfm.queue if id(request) in ids])
        vfm.queue.clear()
        vfm.queue.extend(kept)
        self._place(vfm)

    def choose(self, now: float) -> list[Request]:
        """Take the next batch, smallest rank first; empty only where nothing is queued."""
        batch: list[Request] = []
        total = NO_WORK
        limit = math.inf
        adapters: set[int] = set()
        while vfm := self._first():
            request = vfm.queue[0]
            wanted = total + request.work
            if vfm.adapted:
                adapters.add(vfm.id)
            finish = now + MARGIN * self.cost.batch(wanted, len(adapters)) + self.way_back
            if batch and not (self._has_room(wanted) and self.joins(batch, finish, self._binding(limit))):
                break
            self._take(vfm, request, now)
            batch.append(request)
            total = wanted
            if finish <= request.deadline < limit:
                limit = request.deadline
        for request in batch:
            request.batch_items = total.items
        return batch

    # -- the account

    def measure(self, portions: Sequence[tuple[Request, Work]], elapsed: float) -> None:
        """Share the seconds of a batch's passes among those who took part, in proportion to their estimates."""
        estimates = [self.cost.portion(work) for _, work in portions]
        scale = elapsed / sum(estimates) if estimates else 0.0
        for (request, _), estimate in zip(portions, estimates, strict=True):
            request.share += estimate * scale
            request.vfm.service += estimate * scale

    def settle(self, requests: Iterable[Request]) -> None:
        """Correct the tags by what taken requests really cost: once for every take, whatever became of it.

        A request that failed before it ran has no share, and so gets its whole charge back.
        """
        touched: dict[int, Vfm] = {}
        for request in requests:
            vfm = request.vfm
            vfm.start += request.share / vfm.weight - request.charge
            request.charge = request.share = 0.0
            touched[id(vfm)] = vfm
        for vfm in touched.values():
            if vfm.queue:
                self._place(vfm)

    # -- the heap: of a vFM's entries only the one whose id it knows is valid

    def _has_room(self, total: Work) -> bool:
        return total.items <= self.max_items and total.tokens <= self.max_tokens

    def _binding(self, limit: float) -> float:
        """Small batches serve less: with many deadlines left waiting, a cut breaks more of them than it keeps."""
        return limit if self.urgent <= self.max_items // MANY else math.inf

    def _first(self) -> Vfm | None:
        heap = self._heap
        while heap and heap[0][3].entry != heap[0][2]:
            heappop(heap)
        return heap[0][3] if heap else None

    def _queued(self, request: Request) -> None:
        vfm = request.vfm
        self.queued += 1
        self.urgent += request.work.items if request.deadline < math.inf else 0
        if len(vfm.queue) == 1:
            vfm.start = max(self.virtual_time, vfm.start)  # an idle vFM banks no credit
        if vfm.queue[0] is request:
            self._place(vfm)

    def _take(self, vfm: Vfm, request: Request, now: float) -> None:
        vfm.queue.popleft()
        self._left(vfm, [request])
        request.taken_at = now
        request.charge = self.cost.portion(request.work) / vfm.weight  # kept: the weight may change meanwhile
        self.virtual_time = max(self.virtual_time, vfm.start)
        vfm.start += request.charge
        self._place(vfm)

    def _left(self, vfm: Vfm, requests: Sequence[Request]) -> None:
        self.queued -= len(requests)
        self.urgent -= sum(request.work.items for request in requests if request.deadline < math.inf)
        vfm.taken += len(requests)

    def _place(self, vfm: Vfm) -> None:
        """Give the vFM the entry that its head deserves now; the former one turns stale where it lies."""
        self.backlogged += bool(vfm.queue) - (vfm.entry != 0)
        if not vfm.queue:
            vfm.entry = 0
            return
        self._entries += 1
        vfm.entry = self._entries
        heappush(self._heap, (self.rank(vfm), vfm.queue[0].order, self._entries, vfm))
        if len(self._heap) > 64 + 4 * self.backlogged:  # amortised: the stale ones pay for their removal
            self._heap = [entry for entry in self._heap if entry[3].entry == entry[2]]
            heapify(self._heap)
