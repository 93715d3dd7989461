"""The vocabulary: work adds up, a request is answered once."""

from __future__ import annotations

import sys
import threading

import pytest

from fmplex_backend.types import NO_WORK, Answer, Counts, Reply, Request, SharedCounts, Usage, Vfm, Work

ANSWER = Answer({}, Usage(0, 0, 1))


def request(replies: list[Reply]) -> Request:
    def send(reply: Reply, final: bool) -> None:
        assert final
        replies.append(reply)

    return Request(Vfm(0, "task"), {}, (), 0.0, send)


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


def test_parts_come_before_the_last_reply_and_never_after_it() -> None:
    sent: list[tuple[Reply, bool]] = []
    one = Request(Vfm(0, "task"), {}, (), 0.0, lambda reply, final: sent.append((reply, final)))
    part = Answer({}, Usage(0, 0, 2))
    one.send_part(part)
    one.send_part(part)
    assert not one.resolved
    assert one.resolve(ANSWER)
    one.send_part(part)
    assert sent == [(part, False), (part, False), (ANSWER, True)]


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


def test_threads_that_count_together_lose_nothing() -> None:
    counts, before = SharedCounts(), sys.getswitchinterval()

    def count() -> None:
        for _ in range(20_000):
            counts.fail("invalid")
            counts.add(requests=1, cache_misses=1)

    threads = [threading.Thread(target=count) for _ in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert counts.failures == {"invalid": 60_000}
    assert (counts.requests, counts.cache_hits, counts.cache_misses) == (60_000, 0, 60_000)


@pytest.mark.parametrize("weight", [0.0, 0.0009, 1000.1, -1.0, float("inf"), float("nan")])
def test_a_vfms_weight_is_within_the_limits(weight: float) -> None:
    with pytest.raises(ValueError, match=r"not a number from 0\.001 to 1000"):
        Vfm(3, "sentiment", weight=weight)
    vfm = Vfm(3, "sentiment")
    with pytest.raises(ValueError, match="the weight of 'sentiment' is"):
        vfm.set_weight(weight)
    assert vfm.weight == 1.0


def test_a_vfm_says_what_it_is() -> None:
    vfm = Vfm(3, "task", weight=2.5)
    vfm.arriving.extend(request([]) for _ in range(2))
    vfm.queue.append(request([]))
    assert (vfm.depth, repr(vfm)) == (3, "Vfm(3, 'task', weight=2.5, queued=1)")
