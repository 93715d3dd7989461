"""A pass in parts: every row once and in order, errors raised when nothing runs any more."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fmplex_backend.runtime.parallel import Parallel


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 32])
def test_every_row_is_in_one_part(cores: int, rows: int) -> None:
    parts = Parallel(cores).map(lambda start, end: list(range(start, end)), rows)
    assert [row for _, _, part in parts for row in part] == list(range(rows))
    assert all(part == list(range(start, end)) and part for start, end, part in parts)
    assert len(parts) <= cores


def test_no_more_threads_than_cores() -> None:
    seen: list[int] = []
    Parallel(8).map(lambda start, end: seen.append(torch.get_num_threads()), 4)
    assert seen == [4, 4]  # two parts of two rows
    seen.clear()
    Parallel(8).map(lambda start, end: seen.append(torch.get_num_threads()), 1)
    assert seen == [8]


@pytest.mark.parametrize("broken", [0, 2])
def test_an_error_is_raised_when_every_part_has_ended(broken: int) -> None:
    ended: list[int] = []
    together = threading.Barrier(2)

    def work(start: int, end: int) -> None:
        together.wait(10)
        if start == broken:
            raise ValueError("no")
        time.sleep(0.05)
        ended.append(start)

    with pytest.raises(ValueError, match="no"):
        Parallel(2).map(work, 4)
    assert ended == [2 - broken]
