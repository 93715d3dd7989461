"""Requests that begin before their turn, since what they begin with is in memory now and might not be later.

Where the request whose turn it is has no room, or would take what others can find in memory, one that has not begun
either and finds more of itself there goes before it: of its own vFM, or of one that is ahead of its turn by no more
than a quantum (deficit longest-prefix-match, arXiv 2501.14312). What follows for fairness is in docs/tune-fairness.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from fmplex_backend.types import Kept, Request, Vfm

MOST_ENTRIES, MOST_REQUESTS = 64, 32  # of the heap that are looked at, and of each of the vFMs there

Entry = tuple[float, int, int, Vfm]  # of the heap: rank, admission number of the head, id of the entry


class Locality:
    """Says who goes before whom, and keeps each queue in its order: those that have begun, then those that have not.

    Args:
        quantum: seconds of service by which a vFM may be ahead of its turn when a request of it begins, and that later
            requests of a vFM may have, all in all, before its first one that waits.
        kept: what is in memory for a request, see `types.Runtime`.
    """

    def __init__(self, quantum: float, kept: Callable[[Request], Kept | None]) -> None:
        self.quantum, self.kept = quantum, kept

    def choose(self, turn: Vfm, heap: list[Entry]) -> Request:
        """The request that goes next, where it is the turn of `turn`, at the root of the heap; mostly its head."""
        head = turn.queue[0]
        own = self.kept(head)
        if own is None or not own.displaces:
            return head
        best, most = head, own.found
        for _, _, entry, vfm in islice(heap, MOST_ENTRIES):
            if vfm.entry != entry or (vfm.start - turn.start) * vfm.weight > self.quantum:
                continue
            for request, kept in islice(self._waiting(vfm), MOST_REQUESTS):
                if kept.fits and kept.found > most:
                    best, most = request, kept.found
        return best

    def take(self, request: Request) -> None:
        """Take one that was chosen out of its queue.

        The first that it passes remembers in `passed_at` since when it is passed: a quantum later `_waiting` ends that.
        """
        passed = self._advance(request)
        if passed and passed[0].passed_at is None:
            passed[0].passed_at = request.vfm.start
        request.vfm.queue.remove(request)

    def put_back(self, request: Request) -> None:
        """Let one that has begun and is queued again stand before all of its vFM's that have not, older ones included.

        These may have lost what was kept for them.
        """
        self._advance(request)

    def _waiting(self, vfm: Vfm) -> Iterator[tuple[Request, Kept]]:
        """Requests of a vFM that may begin: its first one alone, once others had a quantum before it."""
        waiting = ((request, kept) for request in vfm.queue if (kept := self.kept(request)) is not None)
        for request, kept in waiting:
            yield request, kept
            if request.passed_at is not None and (vfm.start - request.passed_at) * vfm.weight >= self.quantum:
                return

    def _advance(self, request: Request) -> list[Request]:
        """Let a request stand before those of its vFM that have not begun; returns whom it passes.

        Admission numbers are swapped with the places, so that they still rise along the queue.
        """
        queue = request.vfm.queue
        passed: list[Request] = []
        place = queue.index(request)
        while place and self.kept(queue[place - 1]) is not None:
            before, place = queue[place - 1], place - 1
            queue[place], queue[place + 1] = request, before
            request.admission_number, before.admission_number = before.admission_number, request.admission_number
            passed.insert(0, before)
        return passed
