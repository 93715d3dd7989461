"""Rows that run once for several requests: in the batch that is being formed, and at the heads of the queues."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from fmplex_backend.types import NO_WORK, Request, Vfm, Work


class BatchRows:
    """The rows of a batch, each once, and how many of its requests ask for each."""

    def __init__(self) -> None:
        self.total = NO_WORK  # of the rows that run
        self.items = 0  # rows that were asked for
        self.askers: dict[Hashable, int] = {}

    def total_with(self, request: Request) -> Work:
        """The work of all rows that run, if a request joins: those that run anyway add nothing."""
        if not request.rows:
            return self.total + request.work
        total = self.total
        for key, work in request.rows.items():
            if key not in self.askers:
                total += work
        return total

    def add(self, request: Request, total: Work | None = None) -> Work:
        """Let a request join. Returns its part of the rows' work, which it shares with those who have joined before.

        Args:
            total: what `total_with` says, where that is known.
        """
        self.total = total or self.total_with(request)
        self.items += request.work.items
        askers, shares = self.askers, False
        for key in request.rows:
            if key in askers:
                askers[key] += 1
                shares = True
            else:
                askers[key] = 1
        if not shares:
            return request.work
        return sum((work.divided(askers[key]) for key, work in request.rows.items()), NO_WORK)

    def hold(self, request: Request) -> bool:
        """Whether all rows of a request run anyway."""
        return bool(request.rows) and all(key in self.askers for key in request.rows)


class Heads:
    """Backlogged vFMs by the first row of their head requests."""

    def __init__(self) -> None:
        self._vfms: dict[Hashable, dict[Vfm, None]] = {}
        self._keys: dict[Vfm, Hashable] = {}

    def update(self, vfm: Vfm) -> None:
        """Its head may be another one now."""
        key = next(iter(vfm.queue[0].rows), None) if vfm.queue else None
        former = self._keys.get(vfm)
        if key is former:
            return
        if former is not None:
            same = self._vfms[former]
            if len(same) == 1:
                del self._vfms[former]
            else:
                del same[vfm]
        if key is None:
            del self._keys[vfm]
            return
        self._keys[vfm] = key
        if key in self._vfms:
            self._vfms[key][vfm] = None
        else:
            self._vfms[key] = {vfm: None}

    def asking(self, rows: BatchRows) -> Iterator[Vfm]:
        """VFMs whose heads ask for rows that run anyway."""
        for key in list(rows.askers):
            for vfm in list(self._vfms.get(key, ())):
                if rows.hold(vfm.queue[0]):
                    yield vfm
