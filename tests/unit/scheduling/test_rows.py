"""What is known of rows that several requests share."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from fmplex_backend.scheduling.rows import BatchRows, Heads
from fmplex_backend.types import NO_WORK, Request, Vfm, Work


def asking(vfm: Vfm, **lengths: int) -> Request:
    """A queued request with rows of these lengths; with none it shares nothing."""
    request = Request(vfm, {}, (), 0.0, lambda reply, final: None)
    request.rows = {name: Work.of_row(length) for name, length in lengths.items()}
    request.work = sum(request.rows.values(), NO_WORK)
    vfm.queue.append(request)
    return request


class TestBatchRows:
    def test_a_row_counts_once(self) -> None:
        rows, vfm = BatchRows(), Vfm(0, "task")
        rows.add(asking(vfm, a=4, b=2))
        both, new = asking(vfm, a=4, c=3), asking(vfm, d=1)
        assert rows.total_with(both) == Work(3, 4 + 2 + 3, 16 + 4 + 9)
        rows.add(both)
        assert rows.total_with(new) == Work(4, 10, 30)
        assert (rows.total, rows.items) == (Work(3, 9, 29), 4)

    def test_each_asker_has_a_part_of_it(self) -> None:
        rows, vfm = BatchRows(), Vfm(0, "task")
        parts = [rows.add(asking(vfm, a=6)) for _ in range(3)]
        assert parts == [Work(1, 6, 36), Work(1, 3, 18), Work(1, 2, 12)]
        assert rows.add(asking(vfm, a=6, b=1)) == Work(2, 1.5 + 1, 9 + 1)

    def test_a_request_without_keys_shares_nothing(self) -> None:
        rows, vfm = BatchRows(), Vfm(0, "task")
        request = asking(vfm)
        request.work = Work(2, 7, 25)
        assert [rows.add(request), rows.add(request)] == [request.work, request.work]
        assert (rows.total, rows.items) == (request.work + request.work, 4)
        assert not rows.hold(request)

    def test_rows_that_run_anyway(self) -> None:
        rows, vfm = BatchRows(), Vfm(0, "task")
        rows.add(asking(vfm, a=1, b=1))
        assert rows.hold(asking(vfm, a=1))
        assert rows.hold(asking(vfm, b=1, a=1))
        assert not rows.hold(asking(vfm, a=1, c=1))


class TestHeads:
    @pytest.fixture
    def heads(self) -> Heads:
        return Heads()

    def asking(self, heads: Heads, *keys: Hashable) -> list[Vfm]:
        rows, vfm = BatchRows(), Vfm(99, "batch")
        for key in keys:
            rows.add(asking(vfm, **{str(key): 1}))
        return list(heads.asking(rows))

    def test_those_whose_head_asks_for_what_runs(self, heads: Heads) -> None:
        one, two, three = (Vfm(number, f"task{number}") for number in range(3))
        asking(one, a=1)
        asking(two, b=1)
        asking(two, a=1)
        asking(three, a=1, c=1)
        for vfm in (one, two, three):
            heads.update(vfm)
        assert self.asking(heads, "a") == [one]
        assert self.asking(heads, "a", "b", "c") == [one, three, two]
        two.queue.popleft()
        heads.update(two)
        assert self.asking(heads, "a") == [one, two]
        assert self.asking(heads, "b") == []

    def test_what_is_empty_or_shares_nothing_is_forgotten(self, heads: Heads) -> None:
        vfm = Vfm(0, "task")
        asking(vfm, a=1)
        heads.update(vfm)
        vfm.queue.clear()
        heads.update(vfm)
        heads.update(vfm)
        asking(vfm)
        heads.update(vfm)
        assert self.asking(heads, "a") == []
        assert vars(heads) == {"_vfms": {}, "_keys": {}}
