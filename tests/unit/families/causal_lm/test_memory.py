"""Who has blocks, who gives them up, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_backend.families.causal_lm.memory import Memory
from fmplex_backend.scheduling import Bfq, CostModel
from fmplex_backend.types import Kept, Request, Vfm, Work

SIZE = 4  # tokens of a block


class Rig:
    """Requests whose `prepared` is how many tokens they have; no two have the same, but those of one text."""

    def __init__(self, blocks: int) -> None:
        self.restarted: list[Request] = []
        self.found: dict[Request, int] = {}
        self.texts: dict[Request, int] = {}  # by default its admission number
        self.memory = Memory(blocks, SIZE, self.tokens, self.moved)
        self.vfms: dict[str, Vfm] = {}
        self.admitted = 0

    def request(self, vfm: str, tokens: int, *, ahead: float = 0.0, weight: float = 1.0) -> Request:
        own = self.vfms.setdefault(vfm, Vfm(len(self.vfms), vfm, weight=weight))
        own.start = max(own.start, ahead)
        request = Request(own, {}, (), 0.0, lambda *_: None)
        self.admitted += 1
        request.prepared, request.admission_number = tokens, self.admitted
        return request

    def tokens(self, request: Request) -> list[int]:
        first = 1000 * self.texts.get(request, request.admission_number)
        return list(range(first, first + int(request.prepared)))

    def moved(self, request: Request, to: int) -> None:
        if to:
            self.found[request] = to
        else:
            self.restarted.append(request)

    def compute(self, *requests: Request) -> None:
        """All their tokens, so that what is full can be found."""
        assert self.step(*requests) == [True] * len(requests)
        for request in requests:
            self.memory.keep(request, int(request.prepared))

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


def test_an_older_one_does_not_give_way_where_a_newer_one_of_its_vfm_may_stay() -> None:
    """Else it would stand before the newer one in their queue, and wait for the blocks of that."""
    rig = Rig(4)
    old, new = rig.request("a", 4, ahead=5.0), rig.request("a", 8)
    assert rig.step(old, new) == [True, True]
    waiting = rig.request("b", 8)
    assert rig.step(waiting, old, new) == [False, True, True]
    assert rig.restarted == []


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


# -- copies, whose tags say nothing beside others'


def copy(rig: Rig, vfm: str, tokens: int) -> Request:
    request = rig.request(vfm, tokens)
    request.vfm.spare = True
    return request


def test_who_begins_takes_from_copies_first() -> None:
    """Whatever the tags and shares."""
    rig = Rig(4)
    copies, other = [copy(rig, "copies", 4), copy(rig, "copies", 4)], rig.request("a", 4, ahead=9.0)
    assert rig.step(*copies, other) == [True] * 3
    assert rig.step(rig.request("b", 12, ahead=5.0)) == [True]
    assert rig.restarted == copies[::-1]


def test_who_grows_takes_from_copies_first() -> None:
    rig = Rig(3)
    copied, growing, other = copy(rig, "copies", 4), rig.request("a", 4), rig.request("b", 4, ahead=9.0)
    assert rig.step(copied, growing, other) == [True] * 3
    growing.prepared = 5
    assert rig.step(growing, other, copied) == [True, True, False]
    assert rig.restarted == [copied]


def test_copies_take_from_copies_alone() -> None:
    rig = Rig(4)
    others = [rig.request("a", 4, ahead=9.0) for _ in range(3)]
    copied = copy(rig, "copies", 4)
    assert rig.step(*others, copied) == [True] * 4
    copied.prepared = 5
    assert rig.step(copied) == [False]
    assert rig.restarted == [copied]
    assert rig.step(copy(rig, "more", 8)) == [False]
    assert rig.memory.has_room(rig.request("b", 4)), "a copy that waits lets others pass by"


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


# -- limits of a vFM


def test_so_many_sequences_of_a_vfm_run_at_a_time() -> None:
    rig = Rig(9)
    own, other = [rig.request("a", 4) for _ in range(3)], rig.request("b", 4)
    own[0].vfm.max_running = 2
    assert rig.step(*own, other) == [True, True, False, True], "others do not wait with it"
    rig.memory.release(own[0])
    assert rig.step(own[2]) == [True]
    assert rig.memory.running == {own[0].vfm: 2, other.vfm: 1}


def test_a_vfm_has_no_more_than_its_part_of_the_blocks() -> None:
    rig = Rig(8)
    old, new, third = (rig.request("a", 8) for _ in range(3))
    old.vfm.max_kv_share = 0.5
    other = rig.request("b", 8)
    assert rig.step(old, new, third, other) == [True, True, False, True]
    old.prepared = 9
    assert rig.step(old) == [True]
    assert rig.restarted == [new], "its own newest, though blocks are free"
    assert rig.step(new) == [False]
    rig.memory.release(old)
    assert rig.step(new, third) == [True, True]


def test_one_sequence_may_run_whatever_the_part() -> None:
    rig = Rig(8)
    only = rig.request("a", 12)
    only.vfm.max_kv_share = 0.1
    assert rig.step(only) == [True]
    only.prepared = 32
    assert rig.step(only) == [True]
    assert not rig.restarted


# -- prefixes


def test_what_is_computed_is_found_by_its_tokens() -> None:
    rig = Rig(9)
    first, same, longer = (rig.request("a", tokens) for tokens in (10, 10, 13))
    other = rig.request("a", 10)
    rig.texts |= dict.fromkeys((first, same, longer), 1)
    rig.compute(first)
    assert rig.step(same, longer, other) == [True] * 3
    assert rig.found == {same: 8, longer: 8}
    assert rig.memory.blocks_of[same][:2] == rig.memory.blocks_of[longer][:2] == rig.memory.blocks_of[first][:2]
    assert rig.memory.blocks.free == 9 - (3 + 1 + 2 + 3)
    for request in (first, same, longer, other):
        rig.memory.release(request)
    assert (rig.memory.blocks.free, rig.memory.running) == (9, {})


def test_the_last_token_is_always_computed() -> None:
    rig = Rig(8)
    first, same = rig.request("a", 8), rig.request("a", 8)
    rig.texts |= dict.fromkeys((first, same), 1)
    rig.compute(first)
    rig.memory.release(first)
    assert rig.step(same) == [True]
    assert rig.found == {same: 4}


@pytest.mark.parametrize("dropped", [False, True])
def test_versions_find_nothing_of_each_other(dropped: bool) -> None:
    rig = Rig(8)
    first, other = rig.request("a", 8), rig.request("a", 8)
    rig.texts |= dict.fromkeys((first, other), 1)
    first.extensions, other.extensions = object(), object()
    if dropped:
        other.extensions = first.extensions
    rig.compute(first)
    rig.memory.release(first)
    if dropped:
        rig.memory.blocks.drop(first.extensions)
    assert rig.step(other) == [True]
    assert rig.found == {}


def test_the_blocks_of_a_dropped_version_are_empty_as_soon_as_nobody_holds_them() -> None:
    """Those of sequences that have ended at once, those of one that still runs when it ends."""
    rig = Rig(9)
    ended, running = rig.request("a", 12), rig.request("a", 12)
    running.extensions = ended.extensions = object()
    rig.texts |= dict.fromkeys((ended, running), 1)
    rig.compute(ended)
    running.prepared = 9
    rig.compute(running)
    rig.memory.release(ended)
    blocks = rig.memory.blocks
    assert (blocks.free, blocks.unheld) == (9 - 3, 1)
    blocks.drop(ended.extensions)
    assert (blocks.free, blocks.unheld) == (9 - 3, 0)
    again = rig.request("a", 12)
    again.extensions, rig.texts[again] = ended.extensions, 1
    rig.compute(again)
    assert again not in rig.found
    running.prepared = 12
    rig.compute(running)
    rig.memory.release(running)
    assert (blocks.free, blocks.unheld) == (9 - 3, 0)
    rig.memory.release(again)
    assert (blocks.free, blocks.unheld) == (9, 3), "what was computed since is found"
    assert len(set(blocks.take(9))) == 9


def test_who_computes_the_same_at_a_time_has_it_once() -> None:
    rig = Rig(8)
    one, two = rig.request("a", 9), rig.request("a", 9)
    rig.texts |= dict.fromkeys((one, two), 1)
    rig.compute(one, two)
    assert rig.memory.held == {one.vfm: 4}
    assert rig.memory.blocks_of[one][:2] == rig.memory.blocks_of[two][:2]
    assert rig.memory.blocks.free == 8 - 2 - 2
    rig.memory.release(one)
    assert rig.memory.blocks.free == 8 - 3
    rig.memory.release(two)
    assert rig.memory.blocks.free == 8


def test_the_longest_unused_goes_first_and_before_anybody_loses_his_own() -> None:
    rig = Rig(6)
    old, new = rig.request("a", 8), rig.request("a", 8)
    for request in (old, new):
        rig.compute(request)
        rig.memory.release(request)
    running = rig.request("b", 8, ahead=9.0)
    rig.compute(running)
    large = rig.request("c", 12)
    assert rig.step(running, large) == [True, True]
    assert not rig.restarted
    rig.memory.release(large)
    again, lost = rig.request("a", 9), rig.request("a", 9)
    rig.texts |= {again: new.admission_number, lost: old.admission_number}
    assert rig.step(again) == [True]
    assert rig.found == {again: 4}, "of two that follow each other the last one goes first"
    rig.memory.release(again)
    assert rig.step(lost) == [True]
    assert lost not in rig.found


def test_who_has_lost_its_blocks_finds_what_is_left_of_them() -> None:
    rig = Rig(4)
    growing, victim = rig.request("a", 8), rig.request("b", 8, ahead=5.0)
    rig.compute(growing, victim)
    growing.prepared = 9
    assert rig.step(growing) == [True]
    assert rig.restarted == [victim]
    rig.memory.release(growing)
    assert rig.step(victim) == [True]
    assert rig.found == {victim: 4}


class Written:
    """What is in each block: whoever is told that its tokens are in memory must find them there."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.blocks: dict[int, tuple[object, tuple[int, ...]]] = {}  # a version, and all tokens up to the block's end

    def write(self, request: Request, tokens: list[int], computed: int) -> None:
        for place in range(computed // SIZE, -(-len(tokens) // SIZE)):
            number = self.memory.blocks_of[request][place]
            assert sum(number in blocks for blocks in self.memory.blocks_of.values()) == 1, "another has it"
            self.blocks[number] = (request.extensions, tuple(tokens[: (place + 1) * SIZE]))

    def check(self, request: Request, tokens: list[int], computed: int) -> None:
        for place in range(computed // SIZE):
            expected = (request.extensions, tuple(tokens[: (place + 1) * SIZE]))
            assert self.blocks[self.memory.blocks_of[request][place]] == expected


def test_what_is_kept_for_one_that_waits() -> None:
    """What it would find, whether it can begin, and whether that takes what others would find."""
    rig = Rig(6)
    first, same, other = rig.request("a", 9), rig.request("a", 9), rig.request("a", 9)
    rig.texts[first] = rig.texts[same] = 7
    assert rig.memory.kept(same) == Kept(0, fits=True, displaces=False)
    rig.compute(first)
    assert rig.memory.kept(first) is None
    assert rig.memory.kept(same) == Kept(8, fits=True, displaces=False)
    rig.memory.release(first)
    assert rig.memory.kept(other) == Kept(0, fits=True, displaces=False)
    filling = rig.request("b", 12)
    assert rig.step(filling) == [True]  # an empty block is left, and the two full ones of `first`
    assert rig.memory.kept(same) == Kept(8, fits=False, displaces=False)  # `filling` may need one more
    assert rig.memory.kept(other) == Kept(0, fits=False, displaces=True)
    same.vfm.max_running = 0
    assert rig.memory.kept(same) == Kept(8, fits=False, displaces=False)


def test_who_begins_takes_from_nobody_within_the_quantum() -> None:
    rig = Rig(4)
    rig.memory.locality_s = 2.0
    begun = [rig.request("a", 4, ahead=1.5) for _ in range(4)]
    waiting = rig.request("b", 8)
    assert rig.step(*begun) == [True] * 4
    assert rig.step(waiting, *begun) == [False, True, True, True, True]
    begun[0].vfm.start = 2.5
    assert rig.step(waiting, *begun) == [True, True, True, False, False]


def findable(memory: Memory) -> set[int]:
    """The numbers of the blocks in the trees of all versions."""
    found, left = set(), [*memory.blocks._roots.values()]
    while left:
        behind = [*left.pop().children.values()]
        found |= {block.number for block in behind}
        left += behind
    return found


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_what_is_found_is_what_was_computed(data: st.DataObject) -> None:
    """Sequences of two words in two vFMs of two versions each: they grow, end, lose their blocks, and versions go."""
    count = data.draw(st.integers(4, 10))
    computed: dict[Request, int] = {}
    texts: dict[Request, list[int]] = {}
    memory = Memory(count, SIZE, texts.__getitem__, computed.__setitem__)
    written = Written(memory)
    vfms = [Vfm(0, "a"), Vfm(1, "b", weight=3.0)]
    vfms[0].max_running = data.draw(st.sampled_from([None, 2]))
    vfms[1].max_kv_share = data.draw(st.sampled_from([None, 0.5]))
    versions = {vfm: [object(), object()] for vfm in vfms}
    for number in range(data.draw(st.integers(1, 25))):
        request = Request(data.draw(st.sampled_from(vfms)), {}, (), 0.0, lambda *_: None)
        request.admission_number, request.extensions = number, data.draw(st.sampled_from(versions[request.vfm]))
        texts[request] = data.draw(st.lists(st.sampled_from([7, 7, 7, 8]), min_size=1, max_size=3 * SIZE))
        computed[request] = 0
        memory.begin()
        order = sorted(texts, key=lambda each: (each not in memory.blocks_of, each.vfm.start, each.admission_number))
        placed = [each for each in order if memory.has_room(each)]
        assert placed, "one at least has room"
        for each in placed:
            assert len(memory.blocks_of[each]) == -(-len(texts[each]) // SIZE)
            written.check(each, texts[each], computed[each])
            written.write(each, texts[each], computed[each])
            computed[each] = len(texts[each])
        for each in placed:
            memory.keep(each, computed[each])
            written.check(each, texts[each], computed[each])
            each.vfm.start += 1.0
            if len(texts[each]) >= count * SIZE or data.draw(st.integers(0, 3)) == 0:
                memory.release(each)
                del texts[each]
            else:
                texts[each] = [*texts[each], data.draw(st.sampled_from([7, 8]))]
        if data.draw(st.integers(0, 9)) == 0:
            memory.blocks.drop(data.draw(st.sampled_from([each for own in versions.values() for each in own])))
        assert memory.blocks.unheld == len(
            findable(memory) - {each for own in memory.blocks_of.values() for each in own}
        )
        used = {number for blocks in memory.blocks_of.values() for number in blocks}
        assert memory.blocks.free == count - len(used)
        for vfm in vfms:
            own = {number for each, blocks in memory.blocks_of.items() if each.vfm is vfm for number in blocks}
            assert memory.held[vfm] == len(own)
        assert 0 not in used
    for each in list(texts):
        memory.release(each)
    assert (memory.blocks.free, memory.blocks_of, memory.running, memory.held) == (count, {}, {}, {})
