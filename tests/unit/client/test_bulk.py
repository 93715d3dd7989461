"""Many rows through a task: order, bounds, and what an error costs. No server, no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fmplex import Busy, DeadlineExceeded, ServerProblem, TaskProblem, Unreachable
from fmplex.client.bulk import AT_A_TIME, HOPELESS, Entry, answered, in_order


class FakeClient:
    """Answers an item with itself; `fails` raises for some."""

    def __init__(self, fails: Callable[[list[Any]], Exception | None] = lambda items: None) -> None:
        self.fails = fails
        self.asked: list[list[Any]] = []

    async def predict(self, task: str, items: list[Any]) -> list[Any]:
        assert task == "spam"
        self.asked.append(list(items))
        await asyncio.sleep(0)
        if error := self.fails(items):
            raise error
        return [f"<{item}>" for item in items]


def entries(number: int, bad: tuple[int, ...] = ()) -> Iterator[Entry]:
    for place in range(number):
        yield Entry(place, None, None, "empty") if place in bad else Entry(place, f"text {place}")


def run(client: Any, rows: Iterator[Entry], size: int = 4) -> list[Entry]:
    async def collect() -> list[Entry]:
        return [entry async for batch in answered(client, "spam", rows, size) for entry in batch]

    return asyncio.run(collect())


def test_every_row_in_order() -> None:
    client = FakeClient()
    found = run(client, entries(50))
    assert [entry.row for entry in found] == list(range(50))
    assert [entry.result for entry in found] == [f"<text {place}>" for place in range(50)]
    assert {len(items) for items in client.asked} == {4, 2}


def test_rows_with_an_error_are_not_sent() -> None:
    client = FakeClient()
    found = run(client, entries(10, bad=(0, 1, 2, 3, 6)))
    assert [entry.row for entry in found if entry.error] == [0, 1, 2, 3, 6]
    assert sum(map(len, client.asked)) == 5


def test_an_error_of_a_batch_is_its_row_s() -> None:
    client = FakeClient(lambda items: ServerProblem("too odd") if "text 5" in items else None)
    found = run(client, entries(12))
    assert [(entry.row, entry.error) for entry in found if entry.error] == [(5, "too odd")]
    assert [entry.result for entry in found].count(None) == 1


def test_a_batch_that_failed_once_is_answered() -> None:
    failed: list[Exception] = []

    def once(items: list[Any]) -> Exception | None:
        if "text 5" in items and not failed:
            failed.append(ServerProblem("the pass failed"))
            return failed[0]
        return None

    assert all(entry.result for entry in run(FakeClient(once), entries(12)))


def test_a_batch_without_any_answer_does_not_lose_the_rest() -> None:
    client = FakeClient(lambda items: ServerProblem("no") if {"text 4", "text 5"} & {*items} else None)
    found = run(client, entries(10), size=2)
    assert [entry.row for entry in found if entry.error] == [4, 5]
    assert len(found) == 10


def test_a_task_that_answers_nothing_any_more_stops_it_before_those_rows() -> None:
    def later(items: list[Any]) -> Exception | None:
        return ServerProblem("refused") if int(items[0].split()[1]) >= 8 else None

    async def collect() -> None:
        async for batch in answered(FakeClient(later), "spam", entries(1000), 4):  # type: ignore[arg-type]
            seen.extend(batch)

    seen: list[Entry] = []
    with pytest.raises(ServerProblem, match="'spam' answers nothing any more: refused"):
        asyncio.run(collect())
    assert [entry.row for entry in seen] == list(range(8))
    assert HOPELESS == 3


def test_bad_rows_among_them_do_not_hide_such_a_task() -> None:
    client = FakeClient(lambda items: ServerProblem("refused"))
    with pytest.raises(ServerProblem, match="answers nothing any more: refused"):
        run(client, entries(1000, bad=tuple(range(0, 1000, 3))))
    assert sum(map(len, client.asked)) < 100


@pytest.mark.parametrize("kind", [Busy, DeadlineExceeded, Unreachable])
def test_a_server_that_cannot_be_had_is_tried_twice_and_stops_it(kind: type[ServerProblem]) -> None:
    client = FakeClient(lambda items: kind("gone") if "text 5" in items else None)
    with pytest.raises(kind, match="gone"):
        run(client, entries(12))
    assert client.asked.count(["text 4", "text 5", "text 6", "text 7"]) == 2
    failed: list[Exception] = []

    def once(items: list[Any]) -> Exception | None:
        failed.append(kind("gone"))
        return failed[-1] if len(failed) == 1 else None

    assert all(entry.result for entry in run(FakeClient(once), entries(12)))


def test_rows_are_read_as_answers_go_out() -> None:
    """However long the file: so many batches are in memory."""
    read = 0
    ahead = []

    def rows() -> Iterator[int]:
        nonlocal read
        for place in range(1000):
            read += 1
            yield place

    async def ask(place: int) -> int:
        await asyncio.sleep(0)
        return place

    async def collect() -> list[int]:
        found = []
        async for place in in_order(rows(), ask, AT_A_TIME):
            ahead.append(read - place)
            found.append(place)
        return found

    assert asyncio.run(collect()) == list(range(1000))
    assert max(ahead) <= AT_A_TIME + 3


def test_an_error_of_reading_comes_after_what_was_read() -> None:
    def rows() -> Iterator[Entry]:
        yield from entries(3)
        raise TaskProblem("the file is cut")

    seen: list[Entry] = []

    async def collect() -> None:
        async for batch in answered(FakeClient(), "spam", rows(), 1):  # type: ignore[arg-type]
            seen.extend(batch)

    with pytest.raises(TaskProblem, match="the file is cut"):
        asyncio.run(collect())
    assert [entry.row for entry in seen] == [0, 1, 2]


def test_who_stops_cancels_what_is_on_its_way() -> None:
    cancelled = []

    async def ask(place: int) -> int:
        if place == 0:
            return place
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(place)
            raise
        return place

    async def first() -> None:
        answers = in_order(iter(range(100)), ask, 4)
        assert await anext(answers) == 0
        await asyncio.sleep(0.05)
        await answers.aclose()  # type: ignore[attr-defined]

    asyncio.run(first())
    assert cancelled
