"""What runs in spare time: after everybody else, once the backbone has been idle, alone, and on its own account."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest
from backend_fixtures import EngineRig, write_task

from fmplex_backend.errors import ShuttingDown
from fmplex_backend.serving.engine import ROOM_EVERY_S
from fmplex_backend.types import Failed, Finished, Request, Vfm


class SpareRig(EngineRig):
    """A task and a shadow of it."""

    def __init__(self, root: Path, *, max_items: int = 8) -> None:
        super().__init__(max_items=max_items)
        version = write_task(root, "one", 0)
        self.task, self.shadow = self.vfm(version), Vfm(0, "task0", spare=True)
        self.vfms.append(self.shadow)
        self.swap(self.shadow, version)
        self.step()

    def idle(self) -> None:
        """Nobody wants the backbone for as long as a batch takes."""
        self.clock.sleep(1.0)


@pytest.fixture
def rig(tmp_path: Path) -> SpareRig:
    return SpareRig(tmp_path)


def test_a_copy_runs_when_there_is_nothing_else(rig: SpareRig) -> None:
    copy = rig.send(rig.shadow, "a b")
    rig.idle()
    assert rig.step() == [copy]
    assert isinstance(rig.outcome(copy), Finished)
    assert rig.shadow.service == pytest.approx(rig.engine.counts.busy_s)
    assert (copy.batch_items, rig.shadow.engine.requests) == (1, 1)


def test_everybody_else_comes_first(rig: SpareRig) -> None:
    copies = [rig.send(rig.shadow, "a") for _ in range(3)]
    rig.idle()
    others = [rig.send(rig.task, "b") for _ in range(20)]
    assert rig.step() == others[:8]
    assert rig.step() == others[8:16]
    rig.idle()
    assert rig.step() == others[16:]
    rig.idle()
    assert rig.step() == copies[:1]


def test_the_backbone_has_to_be_idle_for_as_long_as_a_copy_takes(rig: SpareRig) -> None:
    rig.send(rig.task, "a")
    copy = rig.send(rig.shadow, "a b c d")
    rig.step()
    takes = rig.cost.batch(copy.work, 0)
    assert rig.step() == []
    rig.clock.sleep(0.9 * takes)
    assert rig.step() == []
    rig.clock.sleep(0.2 * takes)
    assert rig.step() == [copy]


def test_copies_follow_each_other_while_nobody_comes(rig: SpareRig) -> None:
    copies = [rig.send(rig.shadow, "a") for _ in range(3)]
    rig.idle()
    assert [rig.step() for _ in range(3)] == [[copy] for copy in copies]


def test_small_copies_run_together(rig: SpareRig) -> None:
    rig.engine.spare.cost = rig.cost = type(rig.cost)(fixed=0.9e-3, per_token=1e-3)
    copies = [rig.send(rig.shadow, "a") for _ in range(6)]
    rig.idle()
    assert rig.step() == copies[:4], "0.9 ms and 1 ms a token: four are within 5 ms"
    assert rig.step() == copies[4:]


def test_nothing_is_learned_from_copies_and_no_tag_moves(rig: SpareRig) -> None:
    rig.send(rig.task, "a b")
    rig.step()
    before = (rig.cost.fixed, rig.cost.per_token, rig.engine.scheduler.virtual_time, rig.task.start, rig.task.service)
    for _ in range(5):
        rig.send(rig.shadow, "a b c d e f")
    rig.idle()
    rig.drain()
    now = (rig.cost.fixed, rig.cost.per_token, rig.engine.scheduler.virtual_time, rig.task.start, rig.task.service)
    assert now == before
    assert rig.shadow.engine.requests == 5
    assert rig.service() == pytest.approx(rig.engine.at_work.settled_s)


def test_a_copy_of_several_steps_goes_on_behind_others(rig: SpareRig) -> None:
    copy = rig.send(rig.shadow, "a steps=3")
    rig.idle()
    assert rig.step() == []
    other = rig.send(rig.task, "b")
    assert rig.step() == [other]
    rig.idle()
    rig.drain()
    assert isinstance(rig.outcome(copy), Finished)


def test_a_copy_that_breaks_its_pass_breaks_nobody_elses(rig: SpareRig) -> None:
    copy, other = rig.send(rig.shadow, "poison"), rig.send(rig.task, "b")
    rig.step()
    rig.idle()
    rig.step()
    assert isinstance(rig.outcome(other), Finished)
    assert rig.reason(copy) == "execution"


def test_preparing_is_charged_when_it_comes(rig: SpareRig) -> None:
    copy = rig.make(rig.shadow, "a")
    copy.preparation_s = 0.25
    rig.engine.add_request(copy)
    rig.step()
    assert (rig.shadow.preparation_s, copy.preparation_s) == (0.25, 0.0)


def test_copies_are_dropped_with_their_vfm(rig: SpareRig) -> None:
    copy, other = rig.send(rig.shadow, "a"), rig.send(rig.task, "b")
    rig.engine.post(lambda: rig.engine.retire(rig.shadow))
    rig.drain()
    assert isinstance(rig.outcome(copy), Failed)
    assert rig.reason(copy) == ShuttingDown.reason
    assert isinstance(rig.outcome(other), Finished)
    assert rig.shadow not in rig.engine.vfms
    assert rig.shadow.extensions not in rig.runtime.attached


def test_a_closed_account_has_the_seconds_and_no_requests(rig: SpareRig) -> None:
    rig.send(rig.shadow, "a b")
    rig.idle()
    rig.step()
    rig.engine.post(lambda: rig.engine.retire(rig.shadow))
    rig.drain()
    (closed,) = rig.engine.closed
    assert (closed.account, closed.task, closed.requests, closed.items) == (rig.shadow.account, "task0", 0, 0)
    assert closed.service_s == rig.shadow.service > 0


def test_the_engine_waits_where_a_copy_has_no_room(rig: SpareRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.engine.spare, "has_room", lambda request: False)
    copy = rig.send(rig.shadow, "a")
    rig.idle()
    rig.step()
    assert rig.engine.spare.waiting
    idle: list[bool] = []
    rig.engine.when_idle = lambda: idle.append(rig.engine.is_idle)
    start = monotonic()
    assert rig.engine.step() is False
    assert monotonic() - start >= 0.9 * ROOM_EVERY_S
    assert idle == [True, True]
    monkeypatch.undo()
    assert rig.step() == [copy]


def test_copies_that_wait_are_given_up_at_the_end(rig: SpareRig) -> None:
    rig.engine.spare.busy_until = rig.clock()
    copy: Request = rig.send(rig.shadow, "a")
    assert rig.step() == []
    rig.engine.abandon(ShuttingDown("the end"))
    assert rig.reason(copy) == ShuttingDown.reason
    assert rig.engine.spare.waiting == type(rig.engine.spare.waiting)()
