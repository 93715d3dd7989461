"""Requests that run only in time that nobody else wants: copies for versions that are tried out.

They stand in no queue of the scheduler, so that they move neither virtual time nor anybody's tag, and share no batch
with others. The engine asks for them when it has nothing else to run, once that has been so for as long as they will
take: whoever comes while they run has left the backbone idle for as long before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fmplex_backend.scheduling import CostModel
from fmplex_backend.scheduling.rows import BatchRows
from fmplex_backend.types import Request, Vfm

MOST_S = 0.005  # predicted seconds of a batch of several; whoever comes meanwhile waits for its end


class Spare:
    """The requests, in the order in which they came. The engine thread's.

    Args:
        has_room: see `types.Runtime`.
    """

    def __init__(self, cost: CostModel, max_items: int, has_room: Callable[[Request], bool]) -> None:
        self.cost, self.max_items, self.has_room = cost, max_items, has_room
        self.waiting: deque[Request] = deque()
        self.busy_until = 0.0  # when the last batch of others ended

    def add(self, request: Request) -> None:
        """Behind those that wait."""
        self.waiting.append(request)

    def add_again(self, request: Request) -> None:
        """One that has run, and needs another step."""
        self.waiting.appendleft(request)

    def take(self, vfm: Vfm) -> list[Request]:
        """Take out those of a vFM."""
        taken = [request for request in self.waiting if request.vfm is vfm]
        self.waiting = deque(request for request in self.waiting if request.vfm is not vfm)
        return taken

    def due_in(self, now: float) -> float | None:
        """Seconds until the next batch may run, if nothing else comes; None where none waits."""
        if not self.waiting:
            return None
        first = self.waiting[0]
        takes = self.cost.batch(first.work, int(first.vfm.adapted))
        return max(0.0, self.busy_until + takes - now)

    def choose(self, now: float) -> list[Request]:
        """The next batch, where it may run now: the first request, and those that are predicted to cost little more."""
        if self.due_in(now) != 0.0:
            return []
        batch: list[Request] = []
        rows, adapters = BatchRows(), set[Vfm]()
        while self.waiting:
            request = self.waiting[0]
            wanted = rows.total_with(request)
            groups = len(adapters | {request.vfm}) if request.vfm.adapted else len(adapters)
            if batch and not (wanted.items <= self.max_items and self.cost.batch(wanted, groups) <= MOST_S):
                break
            if not self.has_room(request):
                break
            rows.add(request, wanted)
            if request.vfm.adapted:
                adapters.add(request.vfm)
            batch.append(self.waiting.popleft())
        for request in batch:
            request.scheduled_at, request.batch_items = now, rows.items
        return batch
