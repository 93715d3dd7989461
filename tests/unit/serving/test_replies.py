"""What the reply threads make of outcomes: answers and receipts, parts in order, errors, and the reply latency."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from backend_fixtures import EngineRig, TextExtensions
from service_fixtures import Gate, ServiceRig, until

from fmplex_backend.errors import ExecutionFailed
from fmplex_backend.serving.replies import LATENCY_DECAY, REPORT_EVERY, Replies
from fmplex_backend.types import REPLY_THREADS, Answer, Failed, Finished, Reply, Request, Running, Vfm, Work

STEPS = 100_000  # of a request that ends long before: a busy machine may run the engine's thread alone for a while


def test_an_answer_and_its_receipt(rig: ServiceRig) -> None:
    reply = rig.ask(1, text="three words here")
    assert isinstance(reply, Answer)
    assert np.array_equal(reply.tensors["EMBEDDING"], [[3, 2]])
    assert reply.usage.batch_items == 1


def test_the_receipt_says_how_long_a_request_waited_and_ran(gated: ServiceRig, gate: Gate) -> None:
    start = time.monotonic()
    gated.submit(0)
    gate.wait()
    running = time.monotonic()
    gated.submit(1)
    waiting = time.monotonic()
    gate.step()
    gate.wait()
    second = time.monotonic()
    gate.step()
    gated.caller.wait()
    end = time.monotonic()
    first_usage, second_usage = (gated.caller.answer(number).usage for number in (0, 1))
    assert first_usage.queue_us <= 1e6 * (running - start)
    assert 1e6 * (waiting - running) - 1 <= first_usage.compute_us <= 1e6 * (second - start)
    assert second_usage.queue_us <= 1e6 * (second - running)
    assert second_usage.queue_us + second_usage.compute_us >= 1e6 * (second - waiting) - 2
    assert second_usage.compute_us <= 1e6 * (end - waiting)


def test_each_task_is_answered_with_its_own_extensions(rig: ServiceRig) -> None:
    for number in range(40):
        rig.submit(number % 2)
    rig.caller.wait()
    marks = [float(rig.caller.answer(number).tensors["EMBEDDING"][0, 1]) for number in range(40)]
    assert marks == [1.0, 2.0] * 20


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["too much", "stream steps=3 too much"])
def test_an_answer_that_is_no_number_is_never_sent(rig: ServiceRig, text: str, value: float) -> None:
    """The others of the batch are answered."""
    runtime: Any = rig.service.runtime
    plain = runtime.tensors

    def tensors(rows: Any, extensions: Any) -> Any:
        made = plain(rows, extensions)
        if rows != [["some", "words"]]:
            made["EMBEDDING"][-1, 0] = value
        return made

    runtime.tensors = tensors
    numbers = [rig.submit(0), rig.submit(0, text=text), rig.submit(0), rig.submit(1)]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["", "INTERNAL", "", ""]
    assert "the answer of 'one' holds NaN or infinite numbers in EMBEDDING" in rig.caller.failure(1)[1]
    assert not rig.caller.parts[1]
    vfm: Any = rig.service.loader.table[0]
    assert vfm.failures() == {"not_finite": 1}


@pytest.mark.parametrize(("text", "code"), [("refuse", "INVALID_ARG"), ("crash", "INTERNAL"), ("fail", "INTERNAL")])
def test_what_fails_fails_alone(rig: ServiceRig, text: str, code: str) -> None:
    numbers = [rig.submit(0), rig.submit(0, text=text), rig.submit(1)]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["", code, ""]


def test_a_decoder_that_raises_fails_its_request_alone(rig: ServiceRig) -> None:
    numbers = [rig.submit(0), rig.submit(0, text="undecodable"), rig.submit(0, text="poison"), rig.submit(0)]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["", "INTERNAL", "INTERNAL", ""]
    assert "the decoder of 'one' raised ValueError" in rig.caller.failure(1)[1]
    vfm: Any = rig.service.loader.table[0]
    assert [counts.failures for counts in vfm.replied if counts.failures] == [{"execution": 1}]


def test_an_answer_that_cannot_be_kept_is_sent_all_the_same(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(request: Request, tensors: Any) -> None:
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(rig.service.answers, "keep", keep)
    assert [isinstance(rig.ask(0), Answer) for _ in range(2 * REPLY_THREADS)] == [True] * 2 * REPLY_THREADS
    until(lambda: "no room for a copy" in caplog.text)


ODD: dict[str, Any] = {"nothing": None, "rows of several lengths": {"EMBEDDING": [[1.0], [1.0, 2.0]]}}


@pytest.mark.parametrize("odd", list(ODD))
def test_a_decoder_whose_values_are_no_tensors_fails_its_request_alone(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    """It may be a package's, and what it raises on a reply thread would end the process."""
    runtime: Any = rig.service.runtime
    plain = runtime.tensors
    monkeypatch.setattr(runtime, "tensors", lambda rows, own: ODD[odd] if own.mark == 1 else plain(rows, own))
    numbers = [rig.submit(0), rig.submit(1)]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["INTERNAL", ""]
    assert "the decoder of 'one' raised" in rig.caller.failure(0)[1]


def test_the_scheduler_learns_how_long_answers_take_to_leave(rig: ServiceRig) -> None:
    now = [100.0]
    rig.service.engine.clock = lambda: now[0]
    call = rig.caller.call((0,))

    def slow(reply: Reply, final: bool) -> None:
        now[0] += 0.25  # a server that takes its time
        call.send(reply, final)

    rig.service.submit(replace(call, send=slow))
    rig.caller.wait()
    until(lambda: rig.service.engine.scheduler.reply_latency == 0.25)
    for _ in range(REPORT_EVERY * REPLY_THREADS):
        rig.ask(0)
    until(lambda: 0.15 < rig.service.engine.scheduler.reply_latency < 0.2)


# -- replies of several parts


def test_parts_come_in_order_before_the_last_reply(rig: ServiceRig) -> None:
    rig.ask(0, text="stream steps=4 a b c")
    words = [float(part.tensors["EMBEDDING"][0, 0]) for part in rig.caller.parts[0]]
    assert words == [1.0, 2.0, 3.0]
    answer = rig.caller.answer(0)
    assert float(answer.tensors["EMBEDDING"][0, 0]) == 5.0
    times = [part.usage.queue_us + part.usage.compute_us for part in (*rig.caller.parts[0], answer)]
    assert times == sorted(times)
    vfm: Any = rig.service.loader.table[0]
    assert (vfm.engine.requests, vfm.depth) == (1, 0)


def test_a_part_that_cannot_be_decoded_fails_its_request_alone(rig: ServiceRig) -> None:
    numbers = [rig.submit(0, text=text) for text in (f"stream steps={STEPS} undecodable a", "stream steps=3 a")]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["INTERNAL", ""]
    assert "the decoder of 'one' raised ValueError" in rig.caller.failure(0)[1]
    assert [len(parts) for parts in rig.caller.parts] == [2, 2]
    vfm: Any = rig.service.loader.table[0]
    assert vfm.failures() == {"execution": 1}
    until(lambda: vfm.depth == 0 and not rig.service.engine.scheduler.queued)
    assert rig.service.engine.counts.batches < STEPS  # nothing runs for a request that was answered


def test_a_part_that_cannot_be_sent_fails_its_request(rig: ServiceRig) -> None:
    """A backbone whose config does not let a request have several responses."""
    call = rig.caller.call((0,), f"stream steps={STEPS}")

    def send(reply: Reply, final: bool) -> None:
        if not final:
            raise ExecutionFailed("one response only")
        call.send(reply, final)

    rig.service.submit(replace(call, send=send))
    rig.caller.wait()
    assert rig.caller.failure() == ("INTERNAL", "one response only")
    vfm: Any = rig.service.loader.table[0]
    assert vfm.failures() == {"execution": 1}
    until(lambda: vfm.depth == 0 and not rig.service.engine.scheduler.queued)
    assert rig.service.engine.counts.batches < STEPS


# -- several threads


def test_a_reply_that_takes_long_to_send_holds_up_those_of_its_own_thread_alone(rig: ServiceRig) -> None:
    sending, go_on = threading.Event(), threading.Event()
    call = rig.caller.call((0,), "stream steps=3 a b c")

    def slow(reply: Reply, final: bool) -> None:
        sending.set()
        assert go_on.wait(20)
        call.send(reply, final)

    rig.service.submit(replace(call, send=slow))
    assert sending.wait(20)
    others = [rig.submit(0) for _ in range(REPLY_THREADS - 1)]
    rig.caller.wait(len(others))
    assert not rig.caller.parts[0]
    go_on.set()
    rig.caller.wait()
    words = [float(part.tensors["EMBEDDING"][0, 0]) for part in rig.caller.parts[0]]
    assert words == [1.0, 2.0]
    assert rig.codes() == [""] * REPLY_THREADS


def test_each_thread_counts_its_own_failures(rig: ServiceRig) -> None:
    for _ in range(2 * REPLY_THREADS):
        rig.submit(0, text="undecodable")
    rig.caller.wait()
    vfm: Any = rig.service.loader.table[0]
    assert [counts.failures for counts in vfm.replied] == [{"execution": 2}] * REPLY_THREADS
    assert vfm.failures() == {"execution": 2 * REPLY_THREADS}


def test_the_latency_is_that_of_the_slowest_thread() -> None:
    engine = EngineRig().engine
    for lane, seconds, expected in ((0, 0.3, 0.3), (1, 0.1, 0.3), (0, 0.05, 0.1), (1, 0.2, 0.2)):
        engine.set_reply_latency(lane, seconds)
        assert engine.scheduler.reply_latency == expected


def test_a_last_command_comes_after_those_of_all_threads(rig: ServiceRig) -> None:
    called: list[int] = []
    go_on, last = threading.Event(), threading.Event()
    for lane in reversed(range(REPLY_THREADS)):
        request = Request(Vfm(0, "one"), {}, (), 0.0, lambda reply, final: None, lane=lane)
        rig.service.replies.post(request, lambda: called.append(int(go_on.wait(20))))
    rig.service.replies.post_last(last.set)
    assert not last.is_set()
    go_on.set()
    assert last.wait(20)
    assert called == [1] * REPLY_THREADS


# -- a thread alone


class ReplyRig:
    """A queue of replies with no thread yet, and an engine that keeps what it is told of their latency."""

    def __init__(self) -> None:
        self.engine = EngineRig().engine
        self.replies = Replies(self.engine.runtime)
        self.lane = self.replies.lanes[0]  # that of all requests but where a test says so
        self.sent: list[tuple[Reply, bool]] = []
        self.vfm = Vfm(0, "task")
        self.told: list[float] = []
        self.engine.set_reply_latency = lambda lane, seconds: self.told.append(seconds)  # type: ignore[method-assign]

    def request(self, latency: float = 0.0) -> Request:
        """One that ran, and whose reply is sent so many seconds after its batch."""

        def send(reply: Reply, final: bool) -> None:
            self.sent.append((reply, final))
            request.arrived_at = self.engine.clock() - latency

        request = Request(self.vfm, {}, (), 0.0, send)
        request.extensions = TextExtensions()
        return request

    def put(self, *latencies: float) -> None:
        """Requests that are finished."""
        for latency in latencies:
            self.replies.put(self.request(latency), Finished([["a"]]))

    def told_so_far(self) -> list[float]:
        """Once the engine has received what was posted."""
        self.engine.step(wait=False)
        return self.told


def test_the_engine_is_told_of_a_peak_once_no_more_replies_wait_and_of_its_decay_now_and_then() -> None:
    rig = ReplyRig()
    rig.put(0.1, 0.2, 0.3)
    thread = threading.Thread(target=rig.lane.run_forever, args=(rig.engine,))
    thread.start()
    until(lambda: bool(rig.told_so_far()))
    assert rig.told == [pytest.approx(0.3)]
    rig.put(*[0.0] * REPORT_EVERY)
    until(lambda: len(rig.told_so_far()) == 2)
    assert rig.told[1] == pytest.approx(0.3 * LATENCY_DECAY**REPORT_EVERY)
    rig.replies.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert len(rig.told_so_far()) == 2


def test_what_is_left_when_the_thread_has_died_is_answered_with_an_error() -> None:
    rig = ReplyRig()

    def broken(reply: Reply, final: bool) -> None:
        raise OSError("the server is gone")

    first, second, third = rig.request(), rig.request(), rig.request()
    first.send = broken
    rig.replies.put(first, Finished([["a"]]))
    rig.replies.put(second, Running(Work(1, 1, 1), [["a"]]))
    rig.replies.put(third, Finished([["a"]]))
    with pytest.raises(OSError, match="the server is gone"):
        rig.lane.run_forever(rig.engine)
    error = ExecutionFailed("dead")
    rig.replies.fail_all(error)
    assert rig.sent == [(Failed(error), True)] * 2
    assert all(request.resolved for request in (first, second, third))


class Raced(SimpleQueue[Any]):
    """Another thread takes the last item between a look whether there is one and taking it."""

    def empty(self) -> bool:
        return False


def test_a_thread_that_is_late_may_take_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ReplyRig()
    for lane in rig.replies.lanes:
        monkeypatch.setattr(lane, "inbox", Raced())
    request = rig.request()
    request.lane = REPLY_THREADS - 1
    rig.replies.put(request, Finished([["a"]]))
    error = ExecutionFailed("dead")
    rig.replies.fail_all(error)
    assert rig.sent == [(Failed(error), True)]


def test_nothing_is_decoded_for_a_request_that_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ReplyRig()
    decoded: list[Request] = []
    monkeypatch.setattr(rig.lane, "_decode", lambda request, value: decoded.append(request))
    request = rig.request()
    request.resolve(Failed(ExecutionFailed("before")))
    rig.replies.put(request, Running(Work(1, 1, 1), [["a"]]))
    rig.replies.put(request, Finished([["a"]]))
    rig.replies.stop()
    rig.lane.run_forever(rig.engine)
    assert decoded == []
    assert len(rig.sent) == 1
