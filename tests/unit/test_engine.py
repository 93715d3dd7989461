"""The engine: one step at a time, on a clock of its own, over the fake runtime."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from backend_fixtures import EngineRig, write_version
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import ExecutionFailed, ShuttingDown
from fmplex_backend.runtime.fake import FakeExtensions, FakeRuntime
from fmplex_backend.scheduling import POLICIES
from fmplex_backend.types import Failed, Finished, Pass, PassShape, Request, Work
from fmplex_backend.vfm import Vfm


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
    assert all(request.charge == request.share == 0 for request in rig.sent)
    assert rig.engine.scheduler.queued == 0
    assert [vfm.depth for vfm in rig.vfms] == [0] * len(rig.vfms)


# -- a step


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


class Forgetful(FakeRuntime):
    """Says nothing about requests that hold `lost`."""

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        for done in super().run(batch):
            kept = [(request, outcome) for request, outcome in done.outcomes if "lost" not in request.payload.rows[0]]
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


def test_attaching_the_same_extensions_again_detaches_nothing(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    rig.step()
    runtime: list[FakeExtensions] = rig.runtime.attached
    rig.engine.attach(vfm, vfm.extensions, adapted=False)
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
    vfm.taken += 1  # what was posted never reached the queue
    assert {rig.reason(request) for request in (queued, posted)} == {"shutting_down"}


def test_abandon_fails_what_is_in_flight(rig: EngineRig, version: Path) -> None:
    vfm = rig.vfm(version)
    sent = [rig.send(vfm, text) for text in ("a", "die", "b")]
    with pytest.raises(SystemExit):
        rig.step()
    assert rig.handed == []
    rig.engine.abandon(ExecutionFailed("dead"))
    assert [rig.reason(request) for request in sent] == ["execution"] * 3
    for request in sent:  # they are never settled: there is no next batch
        request.charge = request.share = 0.0


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

    def slow(request: Request, outcome: Finished | Failed) -> None:
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

TEXTS = ["a", "a b c d", "poison", "fail", "steps=2", "steps=4 x", "steps=2 poison", "steps=3 fail"]
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
