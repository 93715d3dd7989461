"""Draining a queue."""

from __future__ import annotations

from queue import SimpleQueue

from fmplex_backend.serving.queues import drained


def test_all_that_is_there_and_comes_meanwhile_is_taken_in_order() -> None:
    queue: SimpleQueue[int] = SimpleQueue()
    for number in range(3):
        queue.put(number)
    found = []
    for number in drained(queue):
        found.append(number)
        if number == 1:
            assert queue.get_nowait() == 2  # another thread is quicker
            queue.put(3)
    assert found == [0, 1, 3]
    assert list(drained(queue)) == []
