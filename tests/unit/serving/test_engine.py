"""The engine: one step at a time, on a clock of its own, over the fake runtime."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from backend_fixtures import EngineRig, TextExtensions, TextStandIn, write_version
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import ExecutionFailed, ShuttingDown
from fmplex_backend.scheduling import POLICIES
from fmplex_backend.serving.engine import ROOM_EVERY_S
from fmplex_backend.types import Failed, Finished, Outcome, Pass, PassShape, Request, Running, Sharing, Vfm, Work


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path, "task", 1, {"mark": 1})


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_version(tmp_path, "task", 2, {"mark": 2, "adapter": "lora"})


@pytest.fixture
def rig() -> Iterator[EngineRig]:
    """Checked at the end: one outcome each, service conserved, nothing left charged."""
    rig = EngineRig()
    yield rig
    check(rig)


def check(rig: EngineRig) -> None:
    rig.drain()
    handed = Counter(id(request) for request, _ in rig.handed)
    assert [handed[id(request)] for request in rig.sent] == [1] * len(rig.sent)
    assert len(rig.handed) == len(rig.sent)
    assert rig.service() == pytest.approx(rig.engine.counts.busy_s)
    assert all(request.preparation_s == 0 for request in rig.sent)
    assert {vfm.waiting_preparation_s for vfm in rig.vfms} <= {0.0}
    assert all(request.charge == request.service_s == 0 for request in rig.sent)
    assert rig.engine.scheduler.queued == 0
    assert [vfm.depth for vfm in rig.vfms] == [0] * len(rig.vfms)


# -- a step


def test_what_a_batch_takes_beside_its_rows_is_learned(version: Path) -> None:
    rig = EngineRig(rows_per_pass=1)
    vfm = rig.vfm(version)
    hand_over = rig.engine.hand_over

    def slowly(request: Request, outcome: Outcome) -> None:
        rig.clock.sleep(0.002)
        hand_over(request, outcome)

    rig.engine.hand_over = slowly
    for _ in range(200):
        for _ in range(2):
            rig.send(vfm, "a")
        rig.step()
    assert rig.cost.once(0) == pytest.approx(2 * rig.cost.fixed + 2 * 0.002, rel=0.01)
    check(rig)


def test_a_stall_outside_of_the_passes_teaches_little(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    hand_over = rig.engine.hand_over

    def stalled(request: Request, outcome: Outcome) -> None:
        rig.clock.sleep(10.0)
        hand_over(request, outcome)

    rig.engine.hand_over = stalled
    rig.send(vfm, "a")
    before = rig.cost.once(0)
    rig.step()
    assert rig.cost.once(0) < 1.2 * before


def test_a_batch_that_broke_teaches_nothing_of_batches(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    for text in ("a", "b", "c", "poison"):
        rig.send(vfm, text)
    rig.step()
    assert rig.engine.counts.broken_passes
    assert rig.cost.once(0) == rig.cost.fixed


def test_one_step_admits_runs_settles_and_hands_over(rig: EngineRig, version: Path) -> None:
    one, two = rig.vfm(version), rig.vfm(version)
    sent = [rig.send(one, "a b c"), rig.send(two, "d")]
    assert rig.step() == sent
    assert [rig.outcome(request) for request in sent] == [Finished([["a", "b", "c"]]), Finished([["d"]])]
    assert one.service > two.service > 0
    assert (rig.engine.counts.batches, rig.engine.counts.passes, rig.engine.counts.items) == (1, 1, 2)


def test_a_step_that_does_not_wait_says_that_there_was_nothing(rig: EngineRig) -> None:
    assert rig.engine.step(wait=False) is False
    assert rig.engine.counts.batches == 0


def test_a_step_that_waits_returns_when_something_comes(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    ran: list[bool] = []
    thread = threading.Thread(target=lambda: ran.append(rig.engine.step()))
    thread.start()
    rig.send(vfm, "a")
    thread.join(10)
    assert ran == [True]


def test_a_step_with_something_queued_does_not_wait(version: Path) -> None:
    rig = EngineRig(max_items=1)
    vfm = rig.vfm(version)
    for _ in range(2):
        rig.send(vfm, "a")
    rig.step()
    assert rig.engine.step(wait=True) is True
    check(rig)


def test_a_command_runs_between_batches_in_the_order_it_was_posted(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.send(vfm, "a")
    depths: list[int] = []
    rig.engine.post(lambda: depths.append(len(vfm.queue)))
    rig.send(vfm, "b")
    rig.engine.post(lambda: depths.append(len(vfm.queue)))
    rig.step()
    assert depths == [1, 2]


def test_a_command_that_posts_itself_again_does_not_hold_up_the_step(rig: EngineRig, version: Path) -> None:
    rounds: list[int] = []

    def again() -> None:
        rounds.append(1)
        rig.engine.post(again)

    rig.engine.post(again)
    request = rig.send(rig.vfm(version), "a")
    assert rig.step() == [request]
    assert len(rounds) == 1


def test_what_arrives_while_a_batch_runs_is_in_the_next(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    late: list[Request] = []
    rig.runtime.sleep = lambda seconds: late.append(rig.send(vfm, "late")) if not late else None
    first = rig.send(vfm, "first")
    assert rig.step() == [first]
    assert rig.step() == late


def test_every_pass_is_handed_over_before_the_next_one_runs(version: Path) -> None:
    rig = EngineRig(rows_per_pass=1)
    vfm = rig.vfm(version)
    handed_when_a_pass_ran: list[int] = []
    sleep = rig.runtime.sleep

    def slept(seconds: float) -> None:
        handed_when_a_pass_ran.append(len(rig.handed))
        sleep(seconds)

    rig.runtime.sleep = slept
    for _ in range(3):
        rig.send(vfm, "a")
    rig.step()
    assert handed_when_a_pass_ran == [0, 1, 2]
    assert (rig.engine.counts.batches, rig.engine.counts.passes) == (1, 3)
    check(rig)


def test_a_batch_is_charged_as_a_whole(version: Path) -> None:
    rig = EngineRig(rows_per_pass=1)
    one, two, wide = rig.vfm(version), rig.vfm(version), rig.vfm(version)
    rig.send(one, "a")
    rig.send(two, "a")
    rig.send(wide, "a", "a")
    seconds, sleep = iter((0.1, 0.3, 0.3, 0.1)), rig.runtime.sleep
    rig.runtime.sleep = lambda _: sleep(next(seconds))
    rig.step()
    assert rig.engine.counts.passes == 4
    assert [vfm.service for vfm in (one, two, wide)] == pytest.approx([0.2, 0.2, 0.4], rel=0.05)
    check(rig)


def test_a_request_whose_rows_lie_in_several_passes_has_one_outcome(version: Path) -> None:
    rig = EngineRig(rows_per_pass=2)
    one, two = rig.vfm(version), rig.vfm(version)
    wide = rig.send(one, "a", "b b", "c c c")
    narrow = rig.send(two, "d")
    assert rig.step() == [wide, narrow]
    assert rig.outcome(wide) == Finished([["a"], ["b", "b"], ["c", "c", "c"]])
    check(rig)


# -- a pass that raises


@pytest.mark.parametrize("rows_per_pass", [None, 1, 2])
def test_only_the_culprit_fails(version: Path, rows_per_pass: int | None) -> None:
    rig = EngineRig(rows_per_pass=rows_per_pass)
    vfms = [rig.vfm(version) for _ in range(3)]
    good = [rig.send(vfm, "fine", "words") for vfm in vfms]
    bad = rig.send(vfms[0], "poison")
    rig.drain()
    assert [rig.reason(request) for request in good] == [""] * 3
    outcome = rig.outcome(bad)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ExecutionFailed)
    assert "RuntimeError" in str(outcome.error)
    assert "this text says so" in str(outcome.error)
    check(rig)


def test_an_error_that_nothing_survives_ends_the_engine(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = EngineRig()
    monkeypatch.setattr(rig.runtime, "is_fatal", lambda error: True)
    bad = rig.send(rig.vfm(version), "poison")
    with pytest.raises(RuntimeError, match="this text says so"):
        rig.step()
    rig.engine.abandon(ExecutionFailed("the device is gone"))
    assert rig.reason(bad) == "execution"


def test_the_broken_pass_costs_those_who_were_in_it(rig: EngineRig, version: Path) -> None:
    one, two = rig.vfm(version), rig.vfm(version)
    rig.send(one, "poison")
    rig.send(two, "a")
    start = rig.clock()
    rig.step()
    assert rig.engine.counts.broken_passes == 2  # together, then the culprit alone
    assert rig.service() == pytest.approx(rig.clock() - start)
    assert one.engine.failures == {"execution": 1}
    assert two.engine.failures == {}


def test_the_cost_model_learns_nothing_from_a_broken_pass(
    rig: EngineRig, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PassShape] = []
    monkeypatch.setattr(rig.cost, "observe", lambda shape, *_: seen.append(shape))
    rig.send(rig.vfm(version), "poison")
    rig.step()
    assert seen == []


def test_what_was_answered_before_the_pass_broke_is_not_run_again(version: Path) -> None:
    rig = EngineRig(rows_per_pass=1)
    vfm = rig.vfm(version)
    first, bad, last = (rig.send(vfm, text) for text in ("a", "poison", "b"))
    assert rig.step() == [first, bad, last]
    assert rig.engine.counts.passes == 4  # a, poison, poison once more, b
    check(rig)


def test_a_failed_outcome_fails_that_request_alone(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    good, bad = rig.send(vfm, "a"), rig.send(vfm, "fail")
    rig.step()
    assert (rig.reason(good), rig.reason(bad)) == ("", "execution")
    assert rig.engine.counts.broken_passes == 0
    assert vfm.engine.failures == {"execution": 1}


class Forgetful(TextStandIn):
    """Says nothing about requests that hold `lost`."""

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        for done in super().run(batch):
            kept = [(request, outcome) for request, outcome in done.outcomes if "lost" not in request.prepared.rows[0]]
            yield Pass(done.shape, done.portions, kept)


def test_a_request_that_the_runtime_forgets_fails(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.engine.runtime = rig.runtime = Forgetful(rig.runtime.seconds, rig.clock.sleep)
    lost, kept = rig.send(vfm, "lost"), rig.send(vfm, "kept")
    rig.step()
    assert (rig.reason(lost), rig.reason(kept)) == ("execution", "")


# -- sequences of several steps


def test_a_sequence_joins_and_leaves_batches_step_by_step(rig: EngineRig, version: Path) -> None:
    one, two = rig.vfm(version), rig.vfm(version)
    sequence = rig.send(one, "steps=3 a b")
    assert rig.step() == []
    single = rig.send(two, "c")
    assert rig.step() == [single]
    assert rig.step() == [sequence]
    assert rig.engine.counts.batches == 3
    assert one.engine.requests == 1
    assert two.service < one.service


def test_a_sequence_is_charged_for_what_each_step_asks(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 0.001 * shape.tokens)
    vfm = rig.vfm(version)
    rig.send(vfm, "steps=3 a b c d e f g h i")
    rig.drain()
    assert vfm.service == pytest.approx(0.010 + 0.001 + 0.001)
    check(rig)


def test_a_sequence_that_meets_poison_goes_on(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    sequence = rig.send(vfm, "steps=4")
    rig.step()
    bad = rig.send(vfm, "poison")
    rig.drain()
    assert (rig.reason(sequence), rig.reason(bad)) == ("", "execution")


def test_the_time_between_two_steps_is_queue_time(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 1.0)
    request = rig.send(rig.vfm(version), "steps=2")
    rig.clock.sleep(5)
    rig.step()
    rig.clock.sleep(3)
    rig.step()
    assert (request.queue_s, request.compute_s) == pytest.approx((8.0, 2.0))
    check(rig)


# -- replies of several parts


def test_a_part_is_handed_over_at_each_step_before_the_last_reply(rig: EngineRig, version: Path) -> None:
    streaming, silent = rig.send(rig.vfm(version), "stream steps=3 a"), rig.send(rig.vfm(version), "steps=3 a")
    rig.step()
    assert rig.parts == [(streaming, [["stream"]])]
    rig.drain()
    assert rig.parts == [(streaming, [["stream"]]), (streaming, [["stream", "steps=3"]])]
    assert rig.outcome(streaming) == Finished([["stream", "steps=3", "a"]])
    assert rig.outcome(silent) == Finished([["steps=3", "a"]])


def test_a_parts_receipt_is_of_what_has_passed_so_far(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 1.0)
    receipts: list[tuple[float, float]] = []
    handed = rig.engine.hand_over

    def hand_over(request: Request, outcome: Outcome) -> None:
        receipts.append((request.queue_s, request.compute_s))
        handed(request, outcome)

    rig.engine.hand_over = hand_over
    rig.send(rig.vfm(version), "stream steps=3")
    for waited in (5, 3, 2):
        rig.clock.sleep(waited)
        rig.step()
    assert receipts == [pytest.approx(each) for each in ((5, 1), (8, 2), (10, 3))]
    check(rig)


def test_a_sequence_that_was_answered_with_an_error_is_not_queued_again(version: Path) -> None:
    """As the reply thread does where it cannot decode a part."""
    rig = EngineRig()
    vfm = rig.vfm(version)
    failed, other = rig.send(vfm, "stream steps=5"), rig.send(vfm, "stream steps=2")
    handed = rig.engine.hand_over

    def hand_over(request: Request, outcome: Outcome) -> None:
        handed(request, outcome)
        if request is failed and isinstance(outcome, Running):
            request.send = lambda reply, final: None
            request.resolve(Failed(ExecutionFailed("not decodable")))

    rig.engine.hand_over = hand_over
    rig.drain()
    assert [request for request, _ in rig.parts] == [failed, other]
    assert [request for request, _ in rig.handed] == [other]
    assert rig.engine.counts.batches == 2
    assert rig.service() == pytest.approx(rig.engine.counts.busy_s)
    assert (vfm.depth, rig.engine.scheduler.queued, failed.charge, failed.service_s) == (0, 0, 0, 0)


# -- time limits


def test_what_waits_beyond_its_time_is_answered_and_never_charged(version: Path) -> None:
    rig = EngineRig(max_items=1, seconds=lambda shape: 1.0)
    limited, other = rig.vfm(version), rig.vfm(version)
    limited.max_seconds = 2.5
    first, second, third = (rig.send(vfm, "a") for vfm in (limited, other, other))
    late = rig.send(limited, "b")
    while rig.engine.step(wait=False):
        pass
    assert [rig.reason(request) for request in (first, second, third)] == ["", "", ""]
    assert rig.reason(late) == "time_limit"
    assert "2.5 s (its max_seconds)" in str(rig.outcome(late).error)  # type: ignore[union-attr]
    assert (limited.service, limited.engine.failures, limited.engine.requests) == (1.0, {"time_limit": 1}, 1)
    check(rig)


def test_a_sequence_ends_in_time_with_what_it_has(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 1.0)
    vfm, other = rig.vfm(version), rig.vfm(version)
    vfm.max_seconds = 2.5
    streaming, silent = rig.send(vfm, "stream steps=9 a b c d"), rig.send(vfm, "steps=9 a")
    free = rig.send(other, "steps=5 a")
    rig.drain()
    assert rig.outcome(streaming) == Finished([["stream", "steps=9", "a"]])
    assert (rig.reason(silent), rig.reason(free)) == ("time_limit", "")
    assert (streaming.queue_s, streaming.compute_s) == (0.0, 3.0)
    assert (vfm.engine.requests, vfm.engine.failures) == (1, {"time_limit": 1})
    assert vfm.given_bytes == streaming.bytes + silent.bytes
    check(rig)


def test_a_sequence_whose_end_cannot_be_made_fails_alone(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is a tokenizer's, and what that raises would end the process."""
    rig = EngineRig(seconds=lambda shape: 1.0)
    vfm, other = rig.vfm(version), rig.vfm(version)
    vfm.max_seconds = 2.5
    bad, good = rig.send(vfm, "stream steps=9 a b"), rig.send(vfm, "stream steps=9 c d")
    free = rig.send(other, "steps=5 a")
    whole = rig.runtime.cut_short

    def cut_short(request: Request) -> Any:
        if request is bad:
            raise OverflowError("out of range")
        return whole(request)

    monkeypatch.setattr(rig.runtime, "cut_short", cut_short)
    rig.drain()
    assert [rig.reason(request) for request in (bad, good, free)] == ["execution", "", ""]
    assert "OverflowError: out of range" in str(rig.outcome(bad).error)  # type: ignore[union-attr]
    check(rig)


def test_a_limit_that_is_set_later_holds_for_what_is_there(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 1.0)
    vfm = rig.vfm(version)
    sequence = rig.send(vfm, "steps=9 a")
    rig.step()
    vfm.max_seconds = 1.0
    rig.step()
    assert rig.reason(sequence) == "time_limit"
    check(rig)


# -- the count of waiting requests


def test_a_request_counts_as_waiting_from_the_moment_it_is_posted(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    rig.send(vfm, "a")
    assert (vfm.depth, len(vfm.queue)) == (1, 0)
    rig.engine._admit(wait=False)
    assert (vfm.depth, len(vfm.queue)) == (1, 1)
    rig.step()
    assert vfm.depth == 0


def test_threads_may_post_at_once(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    requests = [[rig.make(vfm, "a") for _ in range(50)] for _ in range(4)]
    threads = [threading.Thread(target=lambda own=own: [rig.engine.add_request(r) for r in own]) for own in requests]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rig.step()
    for thread in threads:
        thread.join()
    rig.drain()
    assert vfm.depth == 0
    assert len(rig.handed) == 200


# -- extensions


def test_a_request_in_the_queue_runs_with_the_new_extensions(rig: EngineRig, version: Path, other: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    former = vfm.extensions
    request = rig.send(vfm, "a")
    rig.swap(vfm, other)
    rig.step()
    assert request.extensions is vfm.extensions
    assert request.extensions.mark == 2
    assert vfm.adapted
    assert rig.runtime.attached == [vfm.extensions]
    assert former is not vfm.extensions


def test_what_ran_keeps_the_extensions_it_ran_with(rig: EngineRig, version: Path, other: Path) -> None:
    vfm = rig.vfm(version)
    request = rig.send(vfm, "a")
    rig.step()
    rig.swap(vfm, other)
    rig.step()
    assert request.extensions.mark == 1


def test_a_sequence_is_answered_by_the_version_it_began_with(rig: EngineRig, version: Path, other: Path) -> None:
    vfm = rig.vfm(version)
    sequence, whole = rig.send(vfm, "steps=3 a"), rig.send(vfm, "b")
    rig.step()
    former = vfm.extensions
    rig.swap(vfm, other)
    waiting = rig.send(vfm, "c")
    assert rig.step() == [waiting]
    assert rig.runtime.attached == [former, vfm.extensions], "the former is still needed"
    rig.swap(vfm, other)
    assert rig.step() == [sequence]
    assert rig.runtime.attached == [vfm.extensions]
    assert [request.extensions.mark for request in (sequence, whole, waiting)] == [1, 1, 2]


@pytest.mark.parametrize("ends", ["cancel", "refuse", "fail", "resolved"])
def test_a_sequence_that_ends_early_releases_its_version(rig: EngineRig, version: Path, other: Path, ends: str) -> None:
    vfm = rig.vfm(version)
    sequence = rig.send(vfm, "stream steps=9" if ends == "resolved" else "steps=9")
    rig.step()
    rig.swap(vfm, other)
    rig.step()
    former = sequence.extensions
    assert former in rig.runtime.attached
    if ends == "cancel":
        rig.engine.cancel([sequence])
    elif ends == "refuse":
        rig.engine.refuse(vfm, ExecutionFailed("no memory"))
    elif ends == "fail":
        sequence.prepared.rows[0].append("fail")
        rig.step()
    else:
        sequence.send = lambda reply, final: None
        sequence.resolve(Failed(ExecutionFailed("a part could not be sent")))
        rig.step()
        rig.handed.append((sequence, Failed(ExecutionFailed("as the reply thread has it"))))
    assert former not in rig.runtime.attached
    assert vfm.given_bytes == sequence.bytes


def test_attaching_the_same_extensions_again_detaches_nothing(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    runtime: list[TextExtensions] = rig.runtime.attached
    rig.engine.attach(vfm, vfm.extensions)
    assert vfm.extensions in runtime


# -- retirement


def test_a_vfm_is_retired_after_its_queue_ran_empty(version: Path) -> None:
    rig = EngineRig(max_items=1)
    vfm = rig.vfm(version)
    for _ in range(3):
        rig.send(vfm, "a")
    rig.engine.post(lambda: rig.engine.retire(vfm))
    while rig.engine.step(wait=False):
        assert (vfm in rig.engine.vfms) is bool(vfm.queue or len(rig.handed) == 3)
    rig.step()
    assert rig.engine.vfms == set()
    assert rig.runtime.attached == []
    assert [rig.reason(request) for request in rig.sent] == [""] * 3
    check(rig)


def test_a_vfm_that_is_about_to_be_retired_keeps_nobody_busy(version: Path) -> None:
    """Its queue waits for room, and the engine with it."""
    rig = EngineRig()
    inbox = rig.engine._inbox = Recorded()
    vfm = rig.vfm(version)
    rig.send(vfm, "a")
    rig.engine.scheduler.has_room = lambda request: False
    rig.engine.post(lambda: rig.engine.retire(vfm))
    rig.step()
    seen: list[bool] = []
    rig.engine.when_idle = lambda: seen.append(rig.engine.is_idle)
    assert rig.engine.step() is False
    assert inbox.waited == [ROOM_EVERY_S]
    assert seen == [True], "nobody else need wait meanwhile"
    rig.engine.scheduler.has_room = None
    rig.drain()
    assert rig.engine.vfms == set()
    check(rig)


def test_a_vfm_is_retired_beside_others_that_keep_the_device_busy(version: Path) -> None:
    rig = EngineRig(max_items=2, queues_passes=True)
    vfm, other = rig.vfm(version), rig.vfm(version)
    for _ in range(4):
        rig.send(vfm, "a")
    for _ in range(20):
        rig.send(other, "b")
    rig.engine.post(lambda: rig.engine.retire(vfm))
    left, ahead = [], []
    while rig.engine.step(wait=False):
        ahead.append(rig.engine._next_batch is not None)
        left.append((vfm in rig.engine.vfms, len(other.queue)))
    gone = next(queued for here, queued in left if not here)
    assert gone > 10
    assert ahead.count(False) <= 3, "the next batch is queued behind the one at hand all the same"
    check(rig)


class Recorded(SimpleQueue[Any]):
    """An inbox that says how long was waited for a message."""

    def __init__(self) -> None:
        self.waited: list[float | None] = []

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self.waited.append(timeout)
        return super().get(block, timeout)


def test_a_running_sequence_holds_its_vfm(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    sequence = rig.send(vfm, "steps=3")
    rig.step()
    rig.engine.post(lambda: rig.engine.retire(vfm))
    rig.drain()
    assert rig.reason(sequence) == ""
    assert rig.runtime.attached == []


def test_retiring_twice_is_retiring_once(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    rig.engine.retire(vfm)
    rig.engine.retire(vfm)
    assert rig.runtime.attached == []


def test_a_request_that_comes_after_its_vfm_was_retired_is_answered_and_never_run(
    rig: EngineRig, version: Path
) -> None:
    """Its adapter's slot may be another task's by now."""
    vfm = rig.vfm(version)
    rig.engine.post(lambda: rig.engine.retire(vfm))
    request = rig.send(vfm, "a")
    rig.drain()
    assert rig.reason(request) == "shutting_down"
    assert rig.engine.counts.batches == 0


# -- requests that are given up


def test_a_refused_vfm_answers_with_the_error_until_it_is_attached_again(rig: EngineRig, version: Path) -> None:
    vfm, other = rig.vfm(version), rig.vfm(version)
    error = ExecutionFailed("no memory")
    sent = [rig.send(vfm, "a"), rig.send(vfm, "steps=2")]
    rig.engine.post(lambda: rig.engine.refuse(vfm, error))
    sent += [rig.send(vfm, "b"), rig.send(other, "c")]
    rig.drain()
    assert [rig.reason(request) for request in sent] == ["execution"] * 3 + [""]
    assert vfm.engine.failures == {"execution": 3}
    rig.swap(vfm, version)
    healed = rig.send(vfm, "d")
    rig.drain()
    assert rig.reason(healed) == ""
    assert len(rig.runtime.attached) == 2


def test_a_cancelled_request_is_answered_and_never_charged(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    kept, gone = rig.send(vfm, "a"), rig.send(vfm, "b")
    rig.engine.post(lambda: rig.engine.cancel([gone]))
    rig.step()
    assert (rig.reason(kept), rig.reason(gone)) == ("", "cancelled")
    assert rig.engine.counts.items == 1
    assert vfm.engine.failures == {"cancelled": 1}


def test_what_has_run_cannot_be_cancelled(rig: EngineRig, version: Path) -> None:
    request = rig.send(rig.vfm(version), "a")
    rig.step()
    rig.engine.cancel([request])
    assert rig.reason(request) == ""


def test_waiting_gives_the_old_ones_up_to_a_number(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    old = [rig.make(vfm, "a") for _ in range(3)]
    rig.clock.sleep(2)
    young = rig.make(vfm, "a")
    for request in (*old, young):
        rig.engine.scheduler.admit(request)
    since = rig.clock() - 1
    assert rig.engine.waiting(since, 10) == old
    assert rig.engine.waiting(since, 2) == old[:2]


def test_abandon_fails_what_is_queued_and_what_is_posted(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    queued = rig.make(vfm, "a")
    rig.engine.scheduler.admit(queued)
    posted = rig.send(vfm, "b")
    rig.engine.post(lambda: None)
    rig.engine.abandon(ShuttingDown("over"))
    assert vfm.depth == 0
    assert {rig.reason(request) for request in (queued, posted)} == {"shutting_down"}


def test_abandon_fails_what_was_chosen_for_a_batch_that_did_not_come_about(rig: EngineRig, version: Path) -> None:
    """Room may be made on a device, which may be gone."""
    vfms = [rig.vfm(version) for _ in range(3)]
    rig.step()
    sent = [rig.send(vfm, "a") for vfm in vfms]

    def has_room(request: Request) -> bool:
        if request is sent[1]:
            raise RuntimeError("CUDA error")
        return True

    rig.engine.scheduler.has_room = has_room
    with pytest.raises(RuntimeError, match="CUDA error"):
        rig.step()
    rig.engine.abandon(ExecutionFailed("dead"))
    assert [rig.reason(request) for request in sent] == ["execution"] * 3


def test_abandon_goes_by_what_there_is_while_an_engine_that_hung_goes_on(
    rig: EngineRig, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfm = rig.vfm(version)
    rig.step()
    queued = rig.make(vfm, "a")
    rig.engine.scheduler.admit(queued)
    discard = rig.engine.scheduler.discard

    def while_another_is_attached(vfm: Vfm, requests: Any) -> None:
        rig.engine.vfms.add(Vfm(9, "another"))
        discard(vfm, requests)

    monkeypatch.setattr(rig.engine.scheduler, "discard", while_another_is_attached)
    rig.engine.abandon(ShuttingDown("over"))
    assert rig.reason(queued) == "shutting_down"


def test_abandon_fails_what_is_queued_also_where_a_late_engine_takes_what_was_posted(
    rig: EngineRig, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raced(SimpleQueue[Any]):
        def empty(self) -> bool:
            return False  # it has been taken when it is asked for

    queued = rig.make(rig.vfm(version), "a")
    rig.step()
    rig.engine.scheduler.admit(queued)
    monkeypatch.setattr(rig.engine, "_inbox", Raced())
    rig.engine.abandon(ShuttingDown("over"))
    assert rig.reason(queued) == "shutting_down"


def test_what_waits_is_prepared_again_also_where_the_former_extensions_cannot_be_detached(
    rig: EngineRig, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfm = rig.vfm(version)
    rig.step()
    waiting = [rig.make(vfm, text) for text in ("a", "b")]
    for request in waiting:
        rig.engine.scheduler.admit(request)

    def detach(extensions: Any) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(rig.runtime, "detach", detach)
    with pytest.raises(RuntimeError, match="CUDA error"):
        rig.engine.attach(vfm, rig.runtime.load(version))
    rig.drain()
    assert [rig.reason(request) for request in waiting] == ["", ""]


def test_abandon_fails_what_is_in_flight(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    sent = [rig.send(vfm, text) for text in ("a", "die", "b")]
    with pytest.raises(SystemExit):
        rig.step()
    assert rig.handed == []
    rig.engine.abandon(ExecutionFailed("dead"))
    assert [rig.reason(request) for request in sent] == ["execution"] * 3
    for request in sent:  # they are never settled: there is no next batch
        request.charge = request.service_s = 0.0


def test_stop_drains_first(version: Path) -> None:
    rig = EngineRig(max_items=1)
    vfm = rig.vfm(version)
    sent = [rig.send(vfm, "a"), rig.send(vfm, "steps=2"), rig.send(vfm, "b")]
    rig.engine.post(rig.engine.stop)
    sent.append(rig.send(vfm, "posted after"))
    thread = threading.Thread(target=rig.engine.run_forever)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [rig.reason(request) for request in sent] == [""] * 4
    check(rig)


# -- counts


def test_counts_of_a_vfm(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 2.0)
    vfm = rig.vfm(version)
    first = rig.send(vfm, "a", "b")
    rig.clock.sleep(5)
    second = rig.send(vfm, "c")
    rig.clock.sleep(1)
    rig.step()
    assert (first.queue_s, first.compute_s, first.batch_items) == (6.0, 2.0, 3)
    assert (second.queue_s, second.compute_s, second.batch_items) == (1.0, 2.0, 3)
    counts = vfm.engine
    assert (counts.requests, counts.items) == (2, 3)
    assert (counts.queue_s, counts.compute_s) == pytest.approx((7.0, 4.0))
    assert (rig.engine.counts.busy_s, rig.engine.counts.items) == pytest.approx((2.0, 3))
    check(rig)


class AllShared(TextStandIn):
    """Says that all requests of a pass shared one row."""

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        for done in super().run(batch):
            yield replace(done, sharing=Sharing(dict.fromkeys(batch, 1), len(batch) - 1))


def test_rows_that_are_shared_are_counted(rig: EngineRig, version: Path) -> None:
    one, two = rig.vfm(version), rig.vfm(version)
    rig.engine.runtime = rig.runtime = AllShared(rig.runtime.seconds, rig.clock.sleep)
    for vfm in (one, two, one):
        rig.send(vfm, "a")
    rig.step()
    assert (one.engine.shared, two.engine.shared, rig.engine.counts.rows_saved) == (2, 1, 2)


def test_a_sequence_says_what_rows_its_next_step_shares(rig: EngineRig, version: Path) -> None:
    class Renewing(TextStandIn):
        def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
            for done in super().run(batch):
                steps = [
                    (request, replace(outcome, next_rows={"next": outcome.next_work}))
                    for request, outcome in done.outcomes
                    if isinstance(outcome, Running)
                ]
                yield replace(done, outcomes=steps or done.outcomes)

    vfm = rig.vfm(version)
    rig.engine.runtime = rig.runtime = Renewing(rig.runtime.seconds, rig.clock.sleep)
    request = rig.send(vfm, "steps=2")
    rig.step()
    assert request.rows == {"next": request.work}
    rig.step()


@pytest.mark.parametrize(
    ("task", "request_slo", "misses"), [(None, None, 0), (1.9, None, 1), (2.1, None, 0), (9, 1, 1)]
)
def test_deadline_misses(version: Path, task: float | None, request_slo: float | None, misses: int) -> None:
    rig = EngineRig(seconds=lambda shape: 2.0)
    vfm = rig.vfm(version, slo=task)
    rig.send(vfm, "a", slo=request_slo)
    rig.step()
    assert vfm.engine.misses == misses
    check(rig)


def test_the_time_of_settling_is_nobodys(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 1.0, rows_per_pass=1)
    vfm = rig.vfm(version)
    rig.send(vfm, "a")
    rig.send(vfm, "b")
    handed = rig.engine.hand_over

    def slow(request: Request, outcome: Outcome) -> None:
        rig.clock.sleep(10)
        handed(request, outcome)

    rig.engine.hand_over = slow
    rig.step()
    assert rig.engine.counts.busy_s == pytest.approx(2.0)
    check(rig)


def test_the_cost_model_learns_from_each_pass(version: Path) -> None:
    rig = EngineRig(seconds=lambda shape: 0.5)
    vfm = rig.vfm(version)
    for _ in range(60):
        rig.send(vfm, "a b")
        rig.step()
    assert rig.cost.batch(Work(1, 2, 4), 0) == pytest.approx(0.5, rel=0.05)
    check(rig)


# -- any history

TEXTS = ["a", "a b c d", "poison", "fail", "steps=2", "steps=4 x", "stream steps=4", "steps=2 poison", "steps=3 fail"]
OPERATIONS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 2), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["step", "cancel", "swap", "retire"]), st.integers(0, 2), st.just(["a"])),
)


@given(
    operations=st.lists(OPERATIONS, max_size=30),
    policy=st.sampled_from(sorted(POLICIES)),
    rows_per_pass=st.sampled_from([None, 1, 2]),
    abandoned=st.booleans(),
)
def test_any_history_has_one_outcome_per_request(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, int, list[str]]],
    policy: str,
    rows_per_pass: int | None,
    abandoned: bool,
) -> None:
    version = write_version(tmp_path_factory.getbasetemp(), "any", 1, {"mark": 1})
    rig = EngineRig(policy, max_items=3, rows_per_pass=rows_per_pass)
    vfms = [rig.vfm(version, weight=weight) for weight in (1, 2, 5)]
    rig.step()
    for operation, which, texts in operations:
        act(rig, vfms[which], version, operation, texts)
    if abandoned:
        rig.step()
        rig.engine.abandon(ShuttingDown("over"))
        handed = Counter(id(request) for request, _ in rig.handed)
        assert [handed[id(request)] for request in rig.sent] == [1] * len(rig.sent)
    else:
        check(rig)


def act(rig: EngineRig, vfm: Vfm, version: Path, operation: str, texts: list[str]) -> None:
    waiting = [request for request in rig.sent if request.vfm is vfm]
    actions: dict[str, Callable[[], object]] = {
        "send": lambda: rig.send(vfm, *texts),
        "step": rig.step,
        "cancel": lambda: rig.engine.post(lambda: rig.engine.cancel(waiting[::2])),
        "swap": lambda: rig.swap(vfm, version),
        "retire": lambda: rig.engine.post(lambda: rig.engine.retire(vfm)),
    }
    actions[operation]()


# -- passes that are queued on a device: the next batch is started while one runs


class Queueing(EngineRig):
    """Passes are queued when a batch is started; remembers what was started, collected, and called meanwhile."""

    def __init__(self) -> None:
        super().__init__(seconds=lambda shape: 1e-4, queues_passes=True)
        self.cost.fixed, self.cost.per_token = 1e-4, 0.0  # a real wait, but for messages that have come
        self.seen: list[tuple[str, tuple[Request, ...]]] = []
        run = self.runtime.run

        def queue(batch: Sequence[Request]) -> Iterator[Pass]:
            self.seen.append(("started", tuple(batch)))
            return collect(batch)

        def collect(batch: Sequence[Request]) -> Iterator[Pass]:
            for done in run(batch):
                self.seen.append(("collected", tuple(batch)))
                yield done

        self.runtime.run = queue  # type: ignore[method-assign]

    @property
    def order(self) -> list[str]:
        return [what for what, _ in self.seen]


@pytest.fixture
def queueing() -> Iterator[Queueing]:
    rig = Queueing()
    yield rig
    check(rig)


def test_the_next_batch_is_started_before_the_one_at_hand_is_collected(queueing: Queueing, version: Path) -> None:
    vfm = queueing.vfm(version)
    requests = [queueing.send(vfm, "a") for _ in range(20)]
    assert queueing.step() == requests[:8]
    assert queueing.order == ["started", "started", "collected"]
    assert len(queueing.engine.running) == 8
    assert queueing.step() == requests[8:16]
    assert queueing.step() == requests[16:]
    assert queueing.order == ["started", "started", "collected", "started", "collected", "collected"]
    assert len(queueing.engine.running) == 0
    assert not queueing.engine.step(wait=False)


def test_what_arrives_until_a_queued_batch_ends_is_in_the_next(queueing: Queueing, version: Path) -> None:
    vfm = queueing.vfm(version)
    first = queueing.send(vfm, "a")
    queueing.step()
    assert queueing.seen == [("started", (first,)), ("collected", (first,))]
    (second, third) = (queueing.send(vfm, "a") for _ in range(2))
    queueing.step()
    assert queueing.seen[2:] == [("started", (second, third)), ("collected", (second, third))]


def test_how_long_a_queued_batch_takes_depends_on_its_adapters_a_canarys_too(
    queueing: Queueing, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, canary = queueing.vfm(version), queueing.vfm(version)
    queueing.drain()
    canary.id = own.id
    own.adapted = canary.adapted = True
    groups: list[int] = []

    def batch(work: Work, adapter_groups: int) -> float:
        groups.append(adapter_groups)
        return 1e-4

    cost = copy(queueing.cost)  # the scheduler has the other one
    monkeypatch.setattr(cost, "batch", batch)
    monkeypatch.setattr(queueing.engine, "cost", cost)
    for vfm in (own, canary):
        queueing.send(vfm, "a")
    queueing.drain()
    assert groups == [2]


def test_a_command_waits_until_nothing_is_queued_on_the_device(queueing: Queueing, version: Path) -> None:
    vfm = queueing.vfm(version)
    for _ in range(20):
        queueing.send(vfm, "a")
    queueing.step()
    assert queueing.order == ["started", "started", "collected"]
    queueing.engine.post(lambda: queueing.seen.append(("called", ())))
    late = queueing.send(vfm, "c")
    queueing.drain()
    called = queueing.order.index("called")
    assert queueing.order[:called].count("started") == queueing.order[:called].count("collected") == 2
    assert all(late not in batch for _, batch in queueing.seen[:called]), "what is posted after a command waits for it"


def test_extensions_are_replaced_while_nothing_is_queued(queueing: Queueing, version: Path, other: Path) -> None:
    vfm = queueing.vfm(version)
    requests = [queueing.send(vfm, "a") for _ in range(12)]
    queueing.engine.step(wait=False)
    assert len(queueing.engine.running) == 4
    queueing.swap(vfm, other)
    requests += [queueing.send(vfm, "a") for _ in range(4)]
    queueing.drain()
    assert [queueing.reason(request) for request in requests] == [""] * 16


def test_a_batch_that_cannot_be_started_fails_request_by_request(queueing: Queueing, version: Path) -> None:
    vfm = queueing.vfm(version)
    good = [queueing.send(vfm, "a") for _ in range(8)]
    run = queueing.runtime.run
    culprit = queueing.send(vfm, "b")
    beside = queueing.send(vfm, "a")

    def queue(batch: Sequence[Request]) -> Iterator[Pass]:
        if culprit in batch:
            raise RuntimeError("no memory")
        return run(batch)

    queueing.runtime.run = queue  # type: ignore[method-assign]
    queueing.drain()
    assert [queueing.reason(request) for request in [*good, beside]] == [""] * 9
    assert queueing.reason(culprit) == ExecutionFailed("").reason


def test_abandoning_answers_what_is_queued_on_the_device(queueing: Queueing, version: Path) -> None:
    vfm = queueing.vfm(version)
    requests = [queueing.send(vfm, "a") for _ in range(20)]
    queueing.step()
    assert len(queueing.engine.running) == 8
    queueing.engine.abandon(ShuttingDown("it ends"))
    assert len(queueing.engine.running) == 0
    assert [queueing.reason(request) for request in requests[8:]] == [ShuttingDown("").reason] * 12
    for request in requests[8:]:
        request.charge = 0.0  # nothing is settled any more


def test_what_runs_is_answered_where_the_next_batch_cannot_be_chosen(
    queueing: Queueing, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfm = queueing.vfm(version)
    requests = [queueing.send(vfm, "a") for _ in range(20)]
    scheduler = queueing.engine.scheduler
    choose, calls = scheduler.choose, iter([True, False])

    def once(now: float) -> list[Request]:
        if next(calls):
            return choose(now)
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(scheduler, "choose", once)
        with pytest.raises(ZeroDivisionError):
            queueing.step()
    queueing.engine.abandon(ShuttingDown("it ends"))
    assert [queueing.reason(request) for request in requests] == [ShuttingDown("").reason] * 20
    for request in requests:
        request.charge = 0.0  # nothing is settled any more


def test_stopping_runs_what_is_queued_on_the_device(version: Path) -> None:
    rig = Queueing()
    vfm = rig.vfm(version)
    requests = [rig.send(vfm, "a") for _ in range(20)]
    rig.engine.post(rig.engine.stop)
    rig.engine.run_forever()
    assert [rig.reason(request) for request in requests] == [""] * 20
    check(rig)


def test_seconds_of_queued_batches_are_counted_once(queueing: Queueing, version: Path) -> None:
    vfm = queueing.vfm(version)
    for _ in range(40):
        queueing.send(vfm, "a")
    start = queueing.clock()
    queueing.drain()
    assert queueing.engine.counts.busy_s == pytest.approx(queueing.clock() - start)
