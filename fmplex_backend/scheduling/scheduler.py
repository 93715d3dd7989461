"""The virtual queues of a backbone, and the loop that forms a batch from them.

One set of queues serves all policies. A policy ranks the vFMs by their head requests (`rank`) and says whether a batch
may grow (`joins`); tags, account and settlement are the same for all.

The tags are those of start-time fair queueing (Goyal, Vin, Cheng 1997): a request arriving at a vFM gets the
start tag S = max(V, F) and the finish tag F = S + c/w. Inside a backlogged vFM requests follow each other
without a gap, so one number per vFM, the start tag of its head, stands for all of them: scheduling the head advances
it by c/w, and settling replaces the estimate c by what was measured. Preparing a request takes seconds of a core, too:
the tag moves on by these as well when the request is scheduled, or dropped. A request that is never scheduled is
charged for nothing else. What follows for fairness is proved in docs/tune-fairness.md.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.efficiency import Efficiency
from fmplex_backend.scheduling.locality import Locality
from fmplex_backend.scheduling.rows import BatchRows, Heads
from fmplex_backend.types import Request, Vfm, Work

_ADMISSION_NUMBER = attrgetter("admission_number")
URGENT_DIVISOR = 16  # deadlines limit a batch only while no more than max_items / 16 queued rows have one
SAFETY_FACTOR = 1.05  # on estimated batch times where a deadline depends on them
MAX_SHARED = 16  # the requests of a batch have at most so many times Bmax rows, however many of them are shared
EARLY_S = 0.25  # of its share by which a vFM may be ahead and still have rows that run anyway
HEAP_SLACK = 64  # stale entries that the heap may hold before it is compacted, whatever the backlog


class Scheduler:
    """Queues, accounts and batch forming. Every operation is O(log n) in the number of backlogged vFMs.

    Args:
        cost: estimates of service time, in seconds.
        max_items: Bmax, the most rows of a batch; a row that several requests share counts once.
        max_tokens: the most tokens of a batch, likewise. A single request over either limit still runs, alone.
        efficiency: the part of a full batch's throughput at which a batch ends; 1: at none.
        has_room: see `types.Runtime`; a vFM whose head has none is passed over in this batch and keeps its tag, unless
            it is held back by a limit of its own.
        locality: lets requests begin before their turn; None: nothing is in memory for any.
    """

    def __init__(
        self,
        cost: CostModel,
        *,
        max_items: int,
        max_tokens: int | None = None,
        efficiency: float = 1.0,
        has_room: Callable[[Request], bool] | None = None,
        locality: Locality | None = None,
    ) -> None:
        self.cost, self.has_room, self.locality = cost, has_room, locality
        self.efficiency = Efficiency(cost, max_items, efficiency)
        self.max_items = max_items
        self.max_tokens = max_tokens or math.inf
        self.virtual_time = 0.0
        self.queued = 0
        self.backlogged = 0
        self.urgent = 0  # queued rows that have a deadline
        self.reply_latency = 0.0  # seconds from the end of a batch until its last reply is sent
        self._heads = Heads()
        self._heap: list[tuple[float, int, int, Vfm]] = []  # rank, admission number of the head, id of the entry
        self._entries = 0
        self._admitted = 0

    # -- what a policy supplies

    def rank(self, vfm: Vfm) -> float:
        """The sort key of a backlogged vFM: the smallest is scheduled first, ties in the order of admission."""
        raise NotImplementedError

    def joins(self, finish: float, limit: float) -> bool:
        """Whether one more request may join a batch that is not empty.

        Args:
            finish: when the replies of the batch with it would be sent, predicted with a safety factor.
            limit: the earliest deadline in the batch that is met without it; infinite while so many queued rows have
                deadlines that small batches would miss more of them than they meet.
        """
        raise NotImplementedError

    def suffices(self, total: Work, adapter_groups: int) -> bool:
        """Whether a batch that is not empty pays enough to end here."""
        return self.efficiency.reached(total, adapter_groups)

    def first_of(self, turn: Vfm) -> Request:
        """The request that goes next, where it is the turn of a vFM: its head, or one before its turn."""
        return turn.queue[0] if self.locality is None else self.locality.choose(turn, self._heap)

    # -- the queues

    def admit(self, request: Request) -> None:
        """Put a request at the tail of its vFM's queue."""
        slo = request.slo_s if request.slo_s is not None else request.vfm.slo
        request.deadline = math.inf if slo is None else request.arrived_at + slo
        self._admitted += 1
        request.admission_number = self._admitted
        request.vfm.queue.append(request)
        request.vfm.waiting_preparation_s += request.preparation_s
        self._enqueued(request)

    def requeue(self, request: Request) -> None:
        """Put a settled sequence back for its next step, ahead of every request that was admitted after it."""
        queue = request.vfm.queue
        queue.insert(bisect_left(queue, request.admission_number, key=_ADMISSION_NUMBER), request)
        if self.locality is not None:
            self.locality.put_back(request)
        self._enqueued(request)

    def discard(self, vfm: Vfm, requests: Collection[Request]) -> None:
        """Drop queued requests of a vFM, charging it for preparing them.

        A request is charged for its passes when it is scheduled, so nothing is given back.
        """
        ids = {id(request) for request in requests}
        kept = [request for request in vfm.queue if id(request) not in ids]
        dropped = [request for request in vfm.queue if id(request) in ids]
        self._dequeued(dropped)
        vfm.queue.clear()
        vfm.queue.extend(kept)
        for request in dropped:
            self._charge_preparation(request)
        self._place(vfm)

    def choose(self, now: float) -> list[Request]:
        """Form the next batch, smallest rank first; empty only where nothing is queued, or none of it has room.

        What `has_room` raises is raised: the requests that were chosen before are back in their queues then.
        """
        batch: list[Request] = []
        passed_over: list[Vfm] = []
        try:
            self._fill(batch, now, passed_over)
        except BaseException:
            self.settle(batch)
            for request in batch:
                self.requeue(request)
            raise
        finally:
            for vfm in passed_over:
                if vfm.held_back:  # by a limit of its own: it banks no credit, as if it were idle
                    vfm.start, vfm.held_back = max(self.virtual_time, vfm.start), False
                self._place(vfm)
        return batch

    def _fill(self, batch: list[Request], now: float, passed_over: list[Vfm]) -> None:
        rows = BatchRows()
        limit = math.inf
        ends = now + self.reply_latency  # when the replies of the batch so far would be sent
        adapters: set[Vfm] = set()  # a canary has the id of its task
        while turn := self._first():
            request = self.first_of(turn)
            vfm = request.vfm
            wanted = rows.total_with(request)
            groups = len(adapters) + (vfm.adapted and vfm not in adapters)
            finish = now + SAFETY_FACTOR * self.cost.batch(wanted, groups) + self.reply_latency
            if batch and not (self._has_room(wanted, rows, request) and self.joins(finish, self._binding(limit))):
                break
            free = wanted == rows.total  # all its rows run anyway
            if batch and not free and self._may_end(request, finish, ends) and self.suffices(rows.total, len(adapters)):
                self.efficiency.ended += 1
                break
            asked = request.work
            if self.has_room is not None and not self.has_room(request):
                passed_over.append(vfm)
                self._lift_out(vfm)
                continue
            if request.work is not asked:  # a part of it is in memory already
                wanted = rows.total_with(request)
            self._schedule(request, now, rows.add(request, wanted), turn.start)
            batch.append(request)
            ends = finish
            if vfm.adapted:
                adapters.add(vfm)
            if finish <= request.deadline < limit:
                limit = request.deadline
        if batch and self.joins(now, math.inf):  # the batch does not take longer for them
            batch.extend(self._early(rows, now))
        for request in batch:
            request.batch_items = rows.items

    def _early(self, rows: BatchRows, now: float) -> Iterator[Request]:
        """Requests before their turn, all of whose rows run anyway: else these would run once more for them alone.

        Virtual time stays, since nobody's turn has come.
        """
        for vfm in self._heads.asking(rows):
            while vfm.queue and rows.hold(request := vfm.queue[0]) and self._has_room(rows.total, rows, request):
                if (vfm.start - self.virtual_time) * vfm.weight > EARLY_S:
                    break
                if self.has_room is not None and not self.has_room(request):
                    break
                self._schedule(request, now, rows.add(request), self.virtual_time)
                yield request

    # -- the account

    def ahead_s(self, vfm: Vfm) -> float:
        """Seconds by which a vFM has had more than its share, those of preparing its queue included. Any thread.

        0 where no other vFM has requests queued: what nobody else uses is not held back.
        """
        if self.backlogged <= bool(vfm.queue):
            return 0.0
        return max(0.0, (vfm.start - self.virtual_time) * vfm.weight + vfm.waiting_preparation_s)

    def begin_ahead(self, vfm: Vfm, seconds: float) -> None:
        """Let a new vFM begin with what it had beyond its share on another backbone that it comes from."""
        if seconds > 0:
            vfm.start = max(self.virtual_time, vfm.start) + seconds / vfm.weight
            if vfm.queue:
                self._place(vfm)

    def charge_refused(self, request: Request) -> None:
        """Charge a vFM for preparing a request that was refused before it was admitted."""
        vfm = request.vfm
        if not vfm.queue:
            vfm.start = max(self.virtual_time, vfm.start)
        if not self.queued:  # served alone: it owes nothing to those who come later
            self.virtual_time = max(self.virtual_time, vfm.start)
        self._charge_preparation(request)
        if vfm.queue:
            self._place(vfm)

    def _charge_preparation(self, request: Request) -> None:
        """Move on a vFM's tag by the seconds of preparing a request, once: they were measured, there is no estimate."""
        vfm, seconds = request.vfm, request.preparation_s
        vfm.preparation_s += seconds
        vfm.start += seconds / vfm.weight
        request.preparation_s = 0.0

    def measure(self, portions: Sequence[tuple[Request, Work]], elapsed: float) -> None:
        """Charge the seconds of a batch's passes to the requests in them, in proportion to their estimates."""
        estimates = [self.cost.portion(work) for _, work in portions]
        scale = elapsed / sum(estimates) if estimates else 0.0
        for (request, _), estimate in zip(portions, estimates, strict=True):
            request.service_s += estimate * scale
            request.vfm.service += estimate * scale

    def settle(self, requests: Iterable[Request]) -> None:
        """Correct the tags by what scheduled requests really took, once per scheduling, whatever their outcomes.

        A request that failed before it ran received no service, and so gets its whole charge back.
        """
        touched: dict[int, Vfm] = {}
        for request in requests:
            vfm = request.vfm
            vfm.start += request.service_s / vfm.weight - request.charge
            request.charge = request.service_s = 0.0
            touched[id(vfm)] = vfm
        for vfm in touched.values():
            if vfm.queue:
                self._place(vfm)

    # -- the heap: of a vFM's entries only the one whose id stands in `vfm.entry` is valid

    def _has_room(self, total: Work, rows: BatchRows, request: Request) -> bool:
        fits = total.items <= self.max_items and total.tokens <= self.max_tokens
        return fits and rows.items + request.work.items <= MAX_SHARED * self.max_items

    def _binding(self, limit: float) -> float:
        return math.inf if self._crowded() else limit

    def _crowded(self) -> bool:
        """Small batches lower the throughput: with many deadlines queued, cutting one misses more than it meets."""
        return self.urgent > self.max_items // URGENT_DIVISOR

    def _may_end(self, request: Request, finish: float, ends: float) -> bool:
        """Whether a batch that pays enough may leave out its next request; not where that would cost deadlines."""
        if self._crowded():
            return False
        if not finish <= request.deadline < math.inf:
            return True
        behind = ends + SAFETY_FACTOR * self.cost.batch(request.work, int(request.vfm.adapted))
        return behind <= request.deadline

    def _first(self) -> Vfm | None:
        heap = self._heap
        while heap and heap[0][3].entry != heap[0][2]:
            heappop(heap)
        return heap[0][3] if heap else None

    def _enqueued(self, request: Request) -> None:
        vfm = request.vfm
        self.queued += 1
        self.urgent += request.work.items if request.deadline < math.inf else 0
        if len(vfm.queue) == 1:
            vfm.start = max(self.virtual_time, vfm.start)  # an idle vFM banks no credit
        if vfm.queue[0] is request:
            self._place(vfm)

    def _schedule(self, request: Request, now: float, work: Work, turn: float) -> None:
        """Take a request out of its queue; `turn` is the tag of whose turn it was."""
        vfm = request.vfm
        if self.locality is None or vfm.queue[0] is request:
            vfm.queue.popleft()
        else:
            self.locality.take(request)
        self._dequeued([request])
        request.scheduled_at = now
        request.charge = self.cost.portion(work) / vfm.weight  # settled as it was: the weight may change
        self.virtual_time = max(self.virtual_time, turn)
        vfm.start += request.charge
        self._charge_preparation(request)
        self._place(vfm)

    def _dequeued(self, requests: Sequence[Request]) -> None:
        self.queued -= len(requests)
        for request in requests:
            request.vfm.waiting_preparation_s -= request.preparation_s
        self.urgent -= sum(request.work.items for request in requests if request.deadline < math.inf)

    def _lift_out(self, vfm: Vfm) -> None:
        """Take a vFM's entry out of the heap though it has requests; `_place` puts it back."""
        self.backlogged -= 1
        vfm.entry = 0

    def _place(self, vfm: Vfm) -> None:
        """Push an entry with the vFM's present rank; its former one stays in the heap and is no longer valid."""
        self._heads.update(vfm)
        self.backlogged += bool(vfm.queue) - (vfm.entry != 0)
        if not vfm.queue:
            vfm.entry = 0
            return
        self._entries += 1
        vfm.entry = self._entries
        heappush(self._heap, (self.rank(vfm), vfm.queue[0].admission_number, self._entries, vfm))
        if len(self._heap) > HEAP_SLACK + 4 * self.backlogged:  # O(1) amortised: it removes most of the heap
            self._heap = [entry for entry in self._heap if entry[3].entry == entry[2]]
            heapify(self._heap)
