"""Start-time fair queueing without batching: BFQ's order, one request per batch. For comparison."""

from __future__ import annotations

from fmplex_backend.scheduling.bfq import Bfq


class Stfq(Bfq):
    """As fair as BFQ; every request pays for a pass of its own."""

    def joins(self, finish: float, limit: float) -> bool:
        """False: a batch is one request."""
        return False
