"""Arrival order, batched: what a plain dynamic batcher does. For comparison."""

from __future__ import annotations

from fmplex_backend.scheduling.scheduler import Scheduler
from fmplex_backend.types import Request, Vfm, Work


class Fifo(Scheduler):
    """First come, first served over all vFMs: weights and deadlines are ignored."""

    def rank(self, vfm: Vfm) -> float:
        """The admission number of the head request."""
        return vfm.queue[0].admission_number

    def joins(self, finish: float, limit: float) -> bool:
        """True: only max_items and max_tokens limit a batch."""
        return True

    def suffices(self, total: Work, adapter_groups: int) -> bool:
        """False, for the same reason."""
        return False

    def first_of(self, turn: Vfm) -> Request:
        """The one that came first."""
        return turn.queue[0]
