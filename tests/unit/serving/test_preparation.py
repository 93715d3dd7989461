"""Requests are prepared in order, vFM by vFM, within bounds, and charged for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import EngineRig, bytes_of, write_version

from fmplex_backend.errors import ExecutionFailed, InvalidRequest, QueueFull, ShuttingDown
from fmplex_backend.serving import preparation as preparation_module
from fmplex_backend.serving.preparation import AHEAD_S, SMALL_BYTES, Preparation
from fmplex_backend.types import Failed, Request, Vfm

LONG = "word " * SMALL_BYTES  # is never prepared at once


class PreparationRig(EngineRig):
    """An engine rig whose requests come through a Preparation; preparing takes what `seconds_of` says of a text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.cpu = 0.0
        monkeypatch.setattr(preparation_module, "thread_time", lambda: self.cpu)
        self.preparation = Preparation(self.runtime, self.engine)
        self.prepared: list[Request] = []  # in this order
        self.seconds_of: dict[str, float] = {}
        self._prepare, self.runtime.prepare = self.runtime.prepare, self.prepare  # type: ignore[method-assign]

    def prepare(self, request: Request) -> None:
        """As the fake runtime does, taking its time."""
        self.prepared.append(request)
        first = request.inputs["TEXT"][0, 0].decode().split()[0]
        self.cpu += self.seconds_of.get(first, 1e-5)
        self._prepare(request)

    def request(self, vfm: Vfm, text: str = "a") -> Request:
        """One that arrives now."""
        array = bytes_of(text)
        request = Request(vfm, {"TEXT": array}, (), self.clock(), lambda reply, final: None)
        request.input_bytes = len(text)
        self.sent.append(request)
        return request

    def submit(self, vfm: Vfm, text: str = "a") -> Request:
        """One that is submitted now."""
        request = self.request(vfm, text)
        self.preparation.submit(request)
        return request

    def work(self, most: int = 1000) -> int:
        """What a worker would do; how many requests it prepared."""
        return sum(self.preparation.prepare_next(wait=False) for _ in range(most))

    def quick(self, path: Path) -> Vfm:
        """A vFM whose small requests are known to be quick."""
        vfm = self.vfm(path)
        self.step()
        vfm.small_s = 1e-5
        return vfm


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path, "task", 1, {"mark": 1})


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[PreparationRig]:
    """At the end all is answered, paid and given back."""
    rig = PreparationRig(monkeypatch)
    yield rig
    while rig.work() or rig.engine.step(wait=False):
        pass
    assert {vfm.queue_bytes for vfm in rig.vfms} <= {0}
    assert [vfm.depth for vfm in rig.vfms] == [0] * len(rig.vfms)
    assert len(rig.handed) == len(rig.sent)
    assert sum(vfm.preparation_s for vfm in rig.vfms) == pytest.approx(rig.cpu)
    assert rig.service() == pytest.approx(rig.engine.counts.busy_s)
    assert [vfm.waiting_preparation_s for vfm in rig.vfms] == pytest.approx([0.0] * len(rig.vfms))


# -- at once, or by a worker


def test_a_small_request_is_prepared_at_once(rig: PreparationRig, version: Path) -> None:
    request = rig.submit(rig.quick(version))
    assert rig.prepared == [request]


def test_a_large_one_waits_for_a_worker(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    request = rig.submit(vfm, LONG)
    assert (rig.prepared, vfm.depth) == ([], 1)
    assert rig.work() == 1
    assert rig.prepared == [request]


def test_a_small_one_does_not_overtake(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    sent = [rig.submit(vfm, text) for text in (LONG, "a", "b")]
    assert rig.prepared == []
    assert rig.work() == 3
    assert rig.prepared == sent


def test_one_vfms_large_request_holds_up_no_other(rig: PreparationRig, version: Path) -> None:
    slow, other = rig.quick(version), rig.quick(version)
    rig.submit(slow, LONG)
    request = rig.submit(other)
    assert rig.prepared == [request]


def test_whether_small_requests_are_quick_is_measured(rig: PreparationRig, version: Path) -> None:
    """An encoder of its own may take long for few bytes."""
    vfm = rig.vfm(version)
    rig.step()
    rig.seconds_of["slow"] = 0.01
    assert rig.submit(vfm, "slow") not in rig.prepared, "nothing is known of it yet"
    rig.work()
    rig.submit(vfm, "a")
    assert len(rig.prepared) == 1
    for _ in range(30):
        rig.work()
        rig.submit(vfm, "a")
    assert rig.work() == 0, "it is quick now"
    rig.submit(vfm, "slow")
    rig.submit(vfm, "a")
    assert rig.work() == 0, "one that was held up does not count for much"
    for text in ("slow", "slow", "slow", "a"):
        rig.submit(vfm, text)
    assert rig.work() >= 1


def test_a_family_whose_small_requests_may_be_slow_has_none_prepared_at_once(
    rig: PreparationRig, version: Path
) -> None:
    vfm = rig.quick(version)
    rig.runtime.quick_when_small = False
    request = rig.submit(vfm)
    assert rig.prepared == []
    assert rig.work() == 1
    assert rig.prepared == [request]


def test_workers_take_turns_among_vfms(rig: PreparationRig, version: Path) -> None:
    vfms = [rig.quick(version) for _ in range(3)]
    for vfm in vfms:
        for _ in range(3):
            rig.submit(vfm, LONG)
    rig.work()
    assert [request.vfm for request in rig.prepared] == vfms * 3


def test_one_worker_at_a_time_prepares_a_vfms_requests(rig: PreparationRig, version: Path) -> None:
    one, two = rig.quick(version), rig.quick(version)
    rig.seconds_of["word"] = 0.0
    sent = [rig.submit(vfm, LONG) for vfm in (one, one, two)]
    order: list[int] = []
    former = rig.runtime.prepare

    def nested(request: Request) -> None:
        order.append(sent.index(request))
        if len(order) == 1:  # a second worker comes while the first is at it
            assert rig.preparation.prepare_next(wait=False)
            assert not rig.preparation.prepare_next(wait=False)
        former(request)

    rig.runtime.prepare = nested  # type: ignore[method-assign]
    rig.work()
    assert order == [0, 2, 1]


# -- by share


def test_who_is_ahead_of_its_share_waits_while_others_wait(rig: PreparationRig, version: Path) -> None:
    hostile, victim = rig.quick(version), rig.quick(version)
    rig.seconds_of["word"] = 2 * AHEAD_S
    rig.submit(victim)
    for _ in range(3):
        rig.submit(hostile, LONG)
    rig.engine._admit(wait=False)
    assert rig.work(1) == 1
    rig.engine._admit(wait=False)
    assert rig.work() == 0, "the seconds of its first request stand out"
    rig.step()
    assert rig.work(1) == 1, "nobody else waits any more"


def test_a_small_request_of_who_is_ahead_waits_too(rig: PreparationRig, version: Path) -> None:
    hostile, victim = rig.quick(version), rig.quick(version)
    rig.seconds_of["refuse"] = AHEAD_S / 10
    hostile.small_s = 0.0
    rig.submit(victim)
    rig.engine._admit(wait=False)
    for _ in range(20):
        hostile.small_s = 0.0
        rig.submit(hostile, "refuse")
        rig.engine._admit(wait=False)
    assert 10 <= sum(request.vfm is hostile for request in rig.prepared) <= 12
    assert rig.submit(victim) is rig.prepared[-1]


def test_a_worker_that_waits_is_woken_when_the_shares_change(rig: PreparationRig, version: Path) -> None:
    hostile, victim = rig.quick(version), rig.quick(version)
    rig.seconds_of["word"] = 2 * AHEAD_S
    rig.submit(victim)
    sent = [rig.submit(hostile, LONG) for _ in range(2)]
    rig.work(1)
    rig.engine._admit(wait=False)
    worker = threading.Thread(target=rig.preparation.prepare_next)
    worker.start()
    rig.step()
    worker.join(20)
    assert rig.prepared[-2:] == sent


def test_the_vfm_that_is_least_ahead_comes_first(rig: PreparationRig, version: Path) -> None:
    greedy, modest = rig.quick(version), rig.quick(version)
    rig.submit(rig.quick(version))
    rig.engine._admit(wait=False)
    greedy.start = rig.engine.scheduler.virtual_time + AHEAD_S / 2
    sent = [rig.submit(vfm, LONG) for vfm in (greedy, modest)]
    rig.work()
    assert rig.prepared[-2:] == sent[::-1]


# -- the charge


def test_preparing_is_charged_once_the_request_is_scheduled(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    rig.seconds_of["slow"] = 0.5
    request = rig.submit(vfm, "slow")
    assert (request.preparation_s, vfm.preparation_s) == (0.5, 0.0)
    before = vfm.start
    rig.step()
    assert (request.preparation_s, vfm.preparation_s) == (0.0, 0.5)
    assert vfm.start - before == pytest.approx(vfm.service + 0.5)


@pytest.mark.parametrize("text", ["refuse", "crash"])
def test_what_is_refused_is_charged_too(rig: PreparationRig, version: Path, text: str) -> None:
    vfm = rig.quick(version)
    rig.seconds_of[text] = 0.5
    request = rig.submit(vfm, text)
    assert rig.reason(request) == {"refuse": "invalid", "crash": "execution"}[text]
    rig.step()
    assert (vfm.preparation_s, vfm.prepared.failures) == (0.5, {rig.reason(request): 1})


def test_what_is_cancelled_is_charged_for_its_preparation_alone(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    rig.seconds_of["slow"] = 0.5
    request = rig.submit(vfm, "slow")
    rig.engine._admit(wait=False)
    rig.engine.cancel([request])
    assert (vfm.preparation_s, vfm.service) == (0.5, 0.0)


# -- while they wait


def test_what_waits_is_dropped_when_it_is_cancelled(rig: PreparationRig, version: Path) -> None:
    vfm, other = rig.quick(version), rig.quick(version)
    first = rig.submit(vfm, LONG)
    rig.clock.sleep(1.0)
    second, third = rig.submit(vfm, "b"), rig.submit(vfm, "c")
    alone = rig.submit(other, LONG)
    assert rig.preparation.waiting(rig.clock() + 1, 3) == [first, second, third]
    assert rig.preparation.waiting(second.arrived_at, 9) == [first], "those that came before"
    assert [rig.preparation.cancel(request) for request in (second, alone)] == [True, True]
    assert [rig.reason(request) for request in (second, alone)] == ["cancelled", "cancelled"]
    assert (vfm.prepared.failures, other.prepared.failures) == ({"cancelled": 1}, {"cancelled": 1})
    assert not rig.preparation.cancel(second), "once only"
    assert rig.work() == 2
    assert rig.prepared == [first, third]
    assert not rig.preparation.cancel(first), "it is the engine's by now"
    assert not rig.preparation.is_waiting


def test_what_a_worker_has_begun_with_goes_on(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    first, second = rig.submit(vfm, LONG), rig.submit(vfm, "b")
    dropped: list[bool] = []
    prepare = rig.runtime.prepare

    def cancelled_meanwhile(request: Request) -> None:
        prepare(request)
        assert rig.preparation.waiting(rig.clock() + 1, 9) == [second]
        dropped.extend(map(rig.preparation.cancel, (first, second)))

    rig.runtime.prepare = cancelled_meanwhile  # type: ignore[method-assign]
    assert rig.work(1) == 1
    rig.step()
    assert dropped == [False, True]
    assert [rig.reason(request) for request in (first, second)] == ["", "cancelled"]


def test_what_is_prepared_again_and_cancelled_is_charged_once(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    rig.seconds_of["slow"] = 0.5
    request = rig.submit(vfm, "slow")
    rig.engine._admit(wait=False)
    rig.engine.scheduler.discard(vfm, [request])
    rig.preparation.prepare_again(request)
    assert rig.preparation.cancel(request)
    rig.step()
    assert (vfm.preparation_s, vfm.service) == (0.5, 0.0)


# -- bounds


def test_what_waits_beyond_its_time_is_not_prepared(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    vfm.max_seconds = 1.0
    late = rig.submit(vfm, LONG)
    rig.clock.sleep(2.0)
    fresh = rig.submit(vfm, LONG)
    assert rig.work() == 2
    assert rig.prepared == [fresh]
    assert rig.reason(late) == "time_limit"
    assert vfm.failures() == {"time_limit": 1}


def test_who_is_ahead_of_its_share_is_told_in_time(rig: PreparationRig, version: Path) -> None:
    ahead, other = rig.quick(version), rig.quick(version)
    rig.submit(other)
    rig.engine._admit(wait=False)
    ahead.max_seconds, ahead.start = 1.0, 10.0
    late = rig.submit(ahead, LONG)
    assert rig.work() == 0
    rig.clock.sleep(2.0)
    assert rig.work() == 1
    assert rig.reason(late) == "time_limit"
    ahead.start = 0.0


def test_a_full_queue(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    vfm.max_queue = 2
    rig.submit(vfm, LONG)
    rig.submit(vfm)
    with pytest.raises(QueueFull, match="has 2 requests waiting, its max_queue is 2"):
        rig.preparation.submit(rig.request(vfm))
    rig.sent.pop()


def test_a_queue_that_is_full_by_bytes(rig: PreparationRig, version: Path) -> None:
    vfm, other = rig.quick(version), rig.quick(version)
    vfm.max_queue_bytes = 100_000
    rig.submit(vfm, "w" * 60_000)
    with pytest.raises(QueueFull, match="60000 bytes waiting, its max_queue_bytes is 100000"):
        rig.preparation.submit(rig.request(vfm, "w" * 60_000))
    rig.sent.pop()
    rig.submit(other, "w" * 60_000)
    rig.work()
    rig.step()
    rig.submit(vfm, "w" * 60_000)


def test_a_request_that_can_never_fit_says_so(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    vfm.max_queue_bytes = 1000
    with pytest.raises(InvalidRequest, match="the request holds 1001 bytes, max_queue_bytes of 'task0' is 1000"):
        rig.preparation.submit(rig.request(vfm, "w" * 1001))
    rig.sent.pop()
    grows = rig.submit(vfm, "a " * 100)  # 64 bytes a word
    assert rig.reason(grows) == "invalid"
    assert "becomes 6600 bytes" in str(_error(rig, grows))


def _error(rig: PreparationRig, request: Request) -> Exception:
    outcome = rig.outcome(request)
    assert isinstance(outcome, Failed)
    return outcome.error


# -- versions


def test_what_was_prepared_for_a_former_version_is_prepared_again(
    rig: PreparationRig, version: Path, tmp_path: Path
) -> None:
    vfm = rig.quick(version)
    rig.seconds_of["slow"] = 0.5
    queued, posted = rig.submit(vfm, "slow"), rig.request(vfm, "slow")
    rig.engine._admit(wait=False)
    rig.swap(vfm, write_version(tmp_path, "task", 2, {"mark": 2}))
    vfm.small_s = 1e-5
    rig.preparation.submit(posted)  # by the former: the engine has not attached the new one yet
    rig.step()
    assert vfm.preparation_s == pytest.approx(1.0), "charged for both attempts"
    assert rig.work() == 2
    rig.step()
    for request in (queued, posted):
        assert rig.reason(request) == ""
        assert request.extensions.mark == 2
    assert vfm.preparation_s == pytest.approx(2.0)


# -- the end


def test_stopping_prepares_what_waits(rig: PreparationRig, version: Path) -> None:
    vfm = rig.quick(version)
    sent = [rig.submit(vfm, LONG) for _ in range(5)]
    worker = threading.Thread(target=rig.preparation.run_forever)
    rig.preparation.stop()
    worker.start()
    worker.join(20)
    assert not worker.is_alive()
    assert rig.prepared == sent


def test_a_stopped_worker_does_not_wait_for_shares(rig: PreparationRig, version: Path) -> None:
    hostile, victim = rig.quick(version), rig.quick(version)
    rig.submit(victim)
    rig.engine._admit(wait=False)
    hostile.start = rig.engine.scheduler.virtual_time + 100 * AHEAD_S
    rig.submit(hostile, LONG)
    assert rig.work() == 0
    rig.preparation.stop()
    assert rig.work() == 1


def test_failing_all_answers_what_waits_and_what_is_late(monkeypatch: pytest.MonkeyPatch, version: Path) -> None:
    rig = PreparationRig(monkeypatch)
    one, two = rig.quick(version), rig.quick(version)
    replies: list[Any] = []
    sent = [rig.submit(vfm, LONG) for vfm in (one, one, two)]
    late = rig.request(two)
    late.send = lambda reply, final: replies.append(reply)
    rig.preparation.fail_all(ShuttingDown("over"))
    assert [rig.reason(request) for request in sent] == ["shutting_down"] * 3
    rig.preparation.submit(late)
    assert [type(reply.error) for reply in replies] == [ShuttingDown]


def test_a_worker_that_dies_leaves_its_request_to_be_answered(monkeypatch: pytest.MonkeyPatch, version: Path) -> None:
    rig = PreparationRig(monkeypatch)
    request = rig.submit(rig.quick(version), LONG)

    def die(request: Request) -> None:
        raise SystemExit

    rig.runtime.prepare = die  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        rig.preparation.prepare_next()
    rig.preparation.fail_all(ExecutionFailed("dead"))
    assert rig.reason(request) == "execution"
