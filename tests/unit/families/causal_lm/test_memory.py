"""Who has blocks, who gives them up, and in which order."""

from __future__ import annotations

import pytest

from fmplex_backend.families.causal_lm.memory import Memory
from fmplex_backend.scheduling import Bfq, CostModel
from fmplex_backend.types import Request, Vfm, Work

SIZE = 4  # tokens of a block


class Rig:
    """Requests whose `prepared` is how many tokens they have."""

    def __init__(self, blocks: int) -> None:
        self.restarted: list[Request] = []
        self.memory = Memory(blocks, SIZE, lambda request: int(request.prepared), self.restarted.append)
        self.vfms: dict[str, Vfm] = {}
        self.admitted = 0

    def request(self, vfm: str, tokens: int, *, ahead: float = 0.0, weight: float = 1.0) -> Request:
        own = self.vfms.setdefault(vfm, Vfm(len(self.vfms), vfm, weight=weight))
        own.start = max(own.start, ahead)
        request = Request(own, {}, (), 0.0, lambda *_: None)
        self.admitted += 1
        request.prepared, request.admission_number = tokens, self.admitted
        return request

    def step(self, *requests: Request) -> list[bool]:
        self.memory.begin()
        return [self.memory.has_room(request) for request in requests]


def test_blocks_for_all_tokens_and_no_more() -> None:
    rig = Rig(4)
    request = rig.request("a", 5)
    assert rig.step(request) == [True]
    assert rig.memory.blocks.free == 2
    request.prepared = 9
    assert rig.step(request) == [True]
    assert rig.memory.blocks.free == 1
    rig.memory.release(request)
    rig.memory.release(request)
    assert rig.memory.blocks.free == 4


def test_who_grows_takes_from_the_newest_of_the_vfm_furthest_ahead() -> None:
    rig = Rig(4)
    growing, old, new = rig.request("a", 8), rig.request("b", 4, ahead=5.0), rig.request("b", 4)
    assert rig.step(growing, old, new) == [True] * 3
    growing.prepared = 9
    assert rig.step(growing, old, new) == [True, True, False]
    assert rig.restarted == [new]


def test_who_grows_may_be_the_one_to_give_way() -> None:
    rig = Rig(3)
    growing, other = rig.request("a", 8, ahead=5.0), rig.request("b", 4)
    assert rig.step(other, growing) == [True, True]
    growing.prepared = 9
    assert rig.step(other, growing) == [True, False]
    assert rig.restarted == [growing]
    assert rig.memory.blocks.free == 2


def test_none_that_is_placed_in_this_step_loses_its_blocks() -> None:
    rig = Rig(3)
    first, second = rig.request("a", 4, ahead=9.0), rig.request("b", 8)
    assert rig.step(first, second) == [True, True]
    second.prepared = 9
    assert rig.step(first, second) == [True, False]
    assert rig.restarted == [second]


def test_who_waits_is_not_passed_by() -> None:
    rig = Rig(4)
    running, large, small = rig.request("a", 12), rig.request("b", 12), rig.request("c", 4)
    assert rig.step(running) == [True]
    assert rig.step(running, large, small) == [True, False, False]
    rig.memory.release(running)
    assert rig.step(large, small) == [True, True]


@pytest.mark.parametrize(("weight", "taken"), [(1.0, True), (4.0, False)])
def test_who_begins_takes_only_what_makes_shares_more_even(weight: float, taken: bool) -> None:
    """From a vFM ahead with all blocks; not where these are its due by weight."""
    rig = Rig(4)
    heavy = [rig.request("a", 4, ahead=5.0, weight=weight) for _ in range(4)]
    assert rig.step(*heavy) == [True] * 4
    light = rig.request("b", 4)
    assert rig.step(light) == [taken]
    assert rig.restarted == ([heavy[-1]] if taken else [])
    assert rig.step(*heavy[:3]) == [True] * 3


def test_two_requests_do_not_take_turns_at_the_memory() -> None:
    rig = Rig(4)
    one, other = rig.request("a", 12), rig.request("b", 12)
    assert rig.step(one, other) == [True, False]
    for ahead in range(1, 20):
        one.vfm.start, other.vfm.start = float(ahead), 0.0
        assert rig.step(other, one) == [False, True]
    assert not rig.restarted


def test_the_scheduler_passes_over_a_vfm_without_room_and_keeps_its_tag() -> None:
    refused: set[str] = {"b"}
    scheduler = Bfq(CostModel(), max_items=8, has_room=lambda request: request.vfm.name not in refused)
    vfms = {name: Vfm(number, name) for number, name in enumerate("abc")}
    for vfm in vfms.values():
        for _ in range(2):
            request = Request(vfm, {}, (), 0.0, lambda *_: None)
            request.work = Work(1, 1, 1)
            scheduler.admit(request)
    batch = scheduler.choose(0.0)
    assert [request.vfm.name for request in batch] == ["a", "c", "a", "c"]
    assert (vfms["b"].start, len(vfms["b"].queue)) == (0.0, 2)
    refused.clear()
    assert [request.vfm.name for request in scheduler.choose(0.0)] == ["b", "b"]
    assert (scheduler.queued, scheduler.backlogged) == (0, 0)
