"""Who begins before whom, for what is in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fmplex_backend.scheduling import Locality
from fmplex_backend.types import Kept, Request, Vfm

if TYPE_CHECKING:
    from conftest import MakeRig, Rig

COLD = Kept(0, fits=True, displaces=True)


class Backlog:
    """A rig of batches of one request, and what is in memory for each; nothing, if nothing is said."""

    def __init__(self, rig: Rig, quantum: float) -> None:
        self.rig = rig
        self.kept: dict[Request, Kept | None] = {}
        rig.scheduler.locality = Locality(quantum, lambda request: self.kept.get(request, COLD))

    def send(self, vfm: Vfm, found: int | None = 0, *, fits: bool = True, displaces: bool = True) -> Request:
        """Of 100 ms."""
        request = self.rig.send(vfm, 100)
        self.kept[request] = None if found is None else Kept(found, fits, displaces)
        return request

    def order(self) -> list[Request]:
        """In which all run."""
        order = []
        while batch := self.rig.choose():
            order += batch
            self.rig.run(batch)
        return order


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig(max_items=1)


def test_the_one_that_finds_most_goes_first(rig: Rig) -> None:
    vfm, backlog = rig.vfm(), Backlog(rig, 10.0)
    cold, warm, warmest = (backlog.send(vfm, found) for found in (0, 16, 64))
    assert backlog.order() == [warmest, warm, cold]


@pytest.mark.parametrize("head", [Kept(0, fits=True, displaces=False), None])
def test_nobody_goes_before_one_that_takes_nothing_of_others_or_has_begun(rig: Rig, head: Kept | None) -> None:
    vfm, backlog = rig.vfm(), Backlog(rig, 10.0)
    first, warm = backlog.send(vfm), backlog.send(vfm, 64)
    backlog.kept[first] = head
    assert backlog.order() == [first, warm]


def test_what_has_no_room_does_not_go_before(rig: Rig) -> None:
    vfm, backlog = rig.vfm(), Backlog(rig, 10.0)
    cold, warm = backlog.send(vfm), backlog.send(vfm, 64, fits=False)
    assert backlog.order() == [cold, warm]


def test_one_that_has_begun_stands_before_and_is_not_looked_at(rig: Rig) -> None:
    """Another vFM's goes early from behind those of its own that have begun, and keeps its place there."""
    turn, other = rig.vfm(), rig.vfm()
    backlog = Backlog(rig, 10.0)
    cold = backlog.send(turn)
    begun, passed, warm = backlog.send(other, None), backlog.send(other), backlog.send(other, 64)
    number = passed.admission_number
    batch = rig.choose()
    assert batch == [warm]
    assert (warm.admission_number, [*other.queue]) == (number, [begun, passed])
    assert passed.admission_number > number
    assert [*turn.queue] == [cold]
    rig.run(batch)


def test_a_vfm_is_ahead_by_the_quantum_at_most(rig: Rig) -> None:
    """Each request takes 100 ms: at 0, 0.1, 0.2 of its seconds the other is within 250 ms, whatever the weight."""
    turn, other = rig.vfm(), rig.vfm(4.0)
    backlog = Backlog(rig, 0.25)
    cold = [backlog.send(turn) for _ in range(2)]
    warm = [backlog.send(other, 64) for _ in range(6)]
    assert backlog.order() == [*warm[:3], cold[0], *warm[3:], cold[1]]
    assert rig.scheduler.virtual_time == pytest.approx(0.1)


def test_virtual_time_is_the_tag_of_whose_turn_it_was(rig: Rig) -> None:
    turn, other = rig.vfm(), rig.vfm()
    backlog = Backlog(rig, 1.0)
    turn.start, other.start = 0.5, 0.9
    backlog.send(turn)
    warm = backlog.send(other, 64)
    batch = rig.choose()
    assert batch == [warm]
    assert rig.scheduler.virtual_time == 0.5
    rig.run(batch)


def test_later_ones_of_a_vfm_have_a_quantum_before_its_first(rig: Rig) -> None:
    """At 100 ms each: the first is passed at 0, 0.1 and 0.2 of them; then it goes, and the next may be passed."""
    vfm, backlog = rig.vfm(), Backlog(rig, 0.25)
    cold = [backlog.send(vfm) for _ in range(2)]
    warm = [backlog.send(vfm, 64) for _ in range(8)]
    assert backlog.order() == [*warm[:3], cold[0], *warm[3:6], cold[1], *warm[6:]]


def test_one_that_is_back_goes_before_those_that_have_not_begun(rig: Rig) -> None:
    """An older one that lost what was kept for it, for one."""
    vfm, backlog = rig.vfm(), Backlog(rig, 1.0)
    older, begun = backlog.send(vfm, None), backlog.send(vfm, None)
    later = backlog.send(vfm)
    batch = [rig.choose()[0], rig.choose()[0]]
    assert batch == [older, begun]
    backlog.kept[older] = COLD
    rig.scheduler.settle(batch)
    for request in batch:
        rig.scheduler.requeue(request)
    assert [*vfm.queue] == [begun, older, later]
    assert sorted(vfm.queue, key=lambda request: request.admission_number) == [*vfm.queue]


def test_fifo_keeps_the_order_of_arrival(make_rig: MakeRig) -> None:
    rig = make_rig("fifo", max_items=1)
    vfm, backlog = rig.vfm(), Backlog(rig, 10.0)
    cold, warm = backlog.send(vfm), backlog.send(vfm, 64)
    assert backlog.order() == [cold, warm]
