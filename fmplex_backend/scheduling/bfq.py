"""Batch-aware fair queueing (the paper's BFQ): fair by service time, and batched across vFMs."""

from __future__ import annotations

from fmplex_backend.scheduling.scheduler import Scheduler
from fmplex_backend.types import Vfm


class Bfq(Scheduler):
    """Smallest start tag first; a batch grows until one more request would make it miss a deadline it can meet."""

    def rank(self, vfm: Vfm) -> float:
        """The start tag of the head request."""
        return vfm.start

    def joins(self, finish: float, limit: float) -> bool:
        """As long as the batch meets the earliest deadline that it can meet."""
        return finish <= limit
