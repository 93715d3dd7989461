"""Start-time fair queueing without batching: the order of BFQ, one request at a time. For comparison."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_backend.scheduling.bfq import Bfq
from fmplex_backend.types import Request


class Stfq(Bfq):
    """Fair, and as slow as a backbone without batches."""

    def joins(self, batch: Sequence[Request], finish: float, limit: float) -> bool:
        """Never."""
        return False
