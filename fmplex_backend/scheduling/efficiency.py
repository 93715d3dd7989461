"""Where a batch ends because more rows would hardly raise its throughput.

A batch takes F + v: F is paid once however many rows there are (the fixed part of its passes, adapter groups, what the
engine does between batches), v in proportion to the rows. In full batches of rows like its own, these would take
F * rows / max_items + v. As v grows beside F, the two come close long before a batch is full, and whoever arrives
meanwhile waits for all of it. docs/tune-fairness.md says what follows, also for mixed lengths.
"""

from __future__ import annotations

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.types import Work

# Equal batches do not tell their fixed part from the rest, and the fit would drift. So every so many batches that end
# early, one ends at a fraction of that. Not where they end beyond a part of Bmax: F is a large part of a batch there,
# and one more batch is dear.
PROBE_EVERY, PROBE_DIVISOR, PROBE_BELOW = 16, 3, 0.75


class Efficiency:
    """Says when a batch pays as much as it is asked to.

    Args:
        cost: estimates of what a batch takes.
        max_items: Bmax.
        part: of a full batch's throughput; 1 lets every batch grow until something else ends it.
    """

    def __init__(self, cost: CostModel, max_items: int, part: float = 1.0) -> None:
        self.cost, self.max_items, self.part = cost, max_items, part
        self.ended = 0  # batches that ended because of this

    def reached(self, total: Work, adapter_groups: int) -> bool:
        """Whether a batch that is not empty has `part` of the throughput of a full one of rows like its own."""
        if self.part >= 1.0:
            return False
        return self._pays(total, 1, adapter_groups) or self._probes(total, adapter_groups)

    def _probes(self, total: Work, adapter_groups: int) -> bool:
        """Whether this is a batch to learn from, and long enough for that."""
        return (
            self.ended % PROBE_EVERY == PROBE_EVERY - 1
            and PROBE_DIVISOR * total.items <= PROBE_BELOW * self.max_items
            and self._pays(total, PROBE_DIVISOR, adapter_groups)
        )

    def _pays(self, total: Work, times: int, adapter_groups: int) -> bool:
        """Whether so many times the work would."""
        once, rows = self.cost.once(adapter_groups), times * self.cost.rows(total)
        in_full_batches = once * times * total.items / self.max_items + rows
        return in_full_batches >= self.part * (once + rows)
