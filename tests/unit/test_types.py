"""The vocabulary: work adds up, a request is answered once."""

from __future__ import annotations

import sys
import threading

import pytest

from fmplex_backend.types import NO_WORK, Answer, Reply, Request, Usage, Work
from fmplex_backend.vfm import Counts, Vfm

ANSWER = Answer({}, Usage(0, 0, 1))


def request(replies: list[Reply]) -> Request:
    return Request(Vfm(0, "task"), {}, (), 0.0, lambda _, reply: replies.append(reply))


def test_work_adds_up() -> None:
    assert Work(1, 2, 3) + Work(4, 5, 6) == Work(5, 7, 9)
    assert NO_WORK + Work(4, 5, 6) == Work(4, 5, 6)
    with pytest.raises(TypeError):
        Work(1, 2, 3) + 1


def test_a_request_is_answered_once() -> None:
    replies: list[Reply] = []
    one = request(replies)
    assert not one.resolved
    assert [one.resolve(ANSWER), one.resolve(ANSWER)] == [True, False]
    assert replies == [ANSWER]
    assert one.resolved


def test_of_threads_that_answer_at_once_one_does() -> None:
    counts: list[int] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            replies: list[Reply] = []
            one, start = request(replies), threading.Barrier(3)

            def answer(one: Request = one, start: threading.Barrier = start) -> None:
                start.wait()
                one.resolve(ANSWER)

            threads = [threading.Thread(target=answer) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            counts.append(len(replies))
    finally:
        sys.setswitchinterval(before)
    assert counts == [1] * 200


def test_requests_are_told_apart_by_who_they_are() -> None:
    one, two = request([]), request([])
    assert len({one, two}) == 2
    assert one != two


def test_a_vfm_counts_failures_by_reason() -> None:
    counts = Counts()
    for reason in ("invalid", "execution", "invalid"):
        counts.fail(reason)
    assert counts.failures == {"invalid": 2, "execution": 1}


def test_a_vfm_says_what_it_is() -> None:
    vfm = Vfm(3, "task", weight=2.5)
    vfm.accepted += 4
    vfm.taken += 1
    assert (vfm.depth, repr(vfm)) == (3, "Vfm(3, 'task', weight=2.5, queued=0)")
