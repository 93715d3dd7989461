"""A pass in parts: every row once and in order, errors raised when nothing runs any more."""

from __future__ import annotations

import threading

import pytest
import torch

from fmplex_backend.families.parallel import Parallel, threads_for


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 32])
@pytest.mark.parametrize("tokens", [8, 300, 10_000])
def test_every_row_is_in_one_part(cores: int, rows: int, tokens: int) -> None:
    parts = Parallel(cores).map(lambda start, end: list(range(start, end)), rows, tokens)
    assert [row for _, _, part in parts for row in part] == list(range(rows))
    assert all(part == list(range(start, end)) and part for start, end, part in parts)
    assert cores > 1 or len(parts) == 1


@pytest.mark.parametrize(
    ("rows", "tokens", "threads"),
    [
        (1, 16, [1]),  # not worth a second one
        (1, 300, [4]),
        (1, 10_000, [8]),
        (2, 4000, [4, 4]),
        (32, 64, [1]),
        (32, 512, [1] * 8),
        (32, 100_000, [1] * 8),
    ],
)
def test_as_many_parts_and_threads_as_are_worth_it(rows: int, tokens: int, threads: list[int]) -> None:
    seen: list[int] = []
    Parallel(8).map(lambda start, end: seen.append(torch.get_num_threads()), rows, tokens)
    assert seen == threads


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_is_raised_when_every_part_has_ended(broken: int) -> None:
    ended: list[int] = []
    together = threading.Barrier(2)

    def work(start: int, end: int) -> None:
        together.wait(10)
        if start == broken:
            raise ValueError("no")
        ended.append(start)

    with pytest.raises(ValueError, match="no"):
        Parallel(2).map(work, 2, 256)
    assert ended == [1 - broken]


@pytest.mark.parametrize(("tokens", "threads"), [(1, 1), (64, 1), (130, 2), (512, 4)])
def test_passes_outside_of_parts_take_as_many_threads_as_are_worth_it(tokens: int, threads: int) -> None:
    torch.set_num_threads(4)
    with threads_for(tokens):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 4
