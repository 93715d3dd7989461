"""Batch-aware fair queueing (the paper's BFQ): fair by service time, and batched across vFMs."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_backend.scheduling.scheduler import Scheduler
from fmplex_backend.types import Request
from fmplex_backend.vfm import Vfm


class Bfq(Scheduler):
    """Smallest start tag first; a batch grows until one more would break a deadline that it had better keep."""

    def rank(self, vfm: Vfm) -> float:
        """The start tag of the head."""
        return vfm.start

    def joins(self, batch: Sequence[Request], finish: float, limit: float) -> bool:
        """No deadline that was kept may be broken."""
        return finish <= limit
