"""Arrival order, batched: what a plain dynamic batcher does. For comparison."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_backend.scheduling.scheduler import Scheduler
from fmplex_backend.types import Request
from fmplex_backend.vfm import Vfm


class Fifo(Scheduler):
    """Fast, and whoever sends more gets more."""

    def rank(self, vfm: Vfm) -> float:
        """The order of admission of the head."""
        return vfm.queue[0].order

    def joins(self, batch: Sequence[Request], finish: float, limit: float) -> bool:
        """Always."""
        return True
