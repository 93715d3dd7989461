"""Elasticity step by step and by its properties: bounded moves, none without gain, none back, the same again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import affine

from fmplex_controller.planner.loads import CAP, Fleet
from fmplex_controller.planner.situation import Backbone, Binding, Model, Server, Situation, Task
from fmplex_controller.sidecar.elastic import (
    AGAIN_S,
    DRAIN_S,
    LOAD_S,
    OVER_REQUESTS,
    OVER_S,
    RETRY_S,
    START_OVER_S,
    SURGE_REQUESTS,
    SURGE_S,
    Action,
    Elastic,
    Observed,
    Overloaded,
    Rebind,
    Settings,
    Start,
    Stop,
)
from fmplex_controller.sidecar.overload import HIGH, TIGHT, Signal

TOKENS, LOADING_S = 10, 6.0
MODEL = Model("m", 100, affine(1e-3, 1e-4), max_batch=8, label="base")
FULL = 8 / (1e-3 + 8e-3)  # rows per second in full batches of 10 tokens


@dataclass
class World:
    """Backbones with tasks of constant or changing load, on which actions take effect."""

    loads: Mapping[str, float]  # by task: the part of a backbone's capacity that is asked
    places: dict[str, str]  # by task: its backbone
    serving: list[str]
    room: int = 10  # backbones that the memory holds
    own: Settings = field(default_factory=Settings)
    slo: float | None = None
    step_s: float = 0.4
    now: float = 0.0
    started: dict[str, float] = field(default_factory=dict)  # and when
    never_load: bool = False
    done: list[tuple[float, Action]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.elastic = Elastic(self.own)

    @property
    def situation(self) -> Situation:
        up = [
            name
            for name in self.serving
            if name not in self.started or (not self.never_load and self.now >= self.started[name] + LOADING_S)
        ]
        return Situation(
            (Server("s", 100 * self.room, 64),),
            (MODEL,),
            tuple(Task(name, "m", load * FULL, TOKENS, self.slo) for name, load in self.loads.items()),
            tuple(Backbone(name, "m", "s") for name in up),
            tuple(Binding(name, place) for name, place in self.places.items()),
        )

    def used(self) -> dict[str, float]:
        return {name: load.used for name, load in Fleet(self.situation).loads.items()}

    def asked(self) -> dict[str, float]:
        return {name: load.asked for name, load in Fleet(self.situation).loads.items()}

    def observed(self) -> Observed:
        signals = {name: Signal(min(1.0, asked)) for name, asked in self.asked().items()}
        failed = dict.fromkeys(self.started, "no room") if self.never_load else {}
        return Observed(self.situation, signals, frozenset(self.started), failed)

    def step(self) -> list[Action]:
        actions = self.elastic.decide(self.observed(), self.now)
        self.carry_out(actions)
        self.now += self.step_s
        return actions

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Rebind):
                assert self.places[action.task] == action.former != action.backbone
                self.places[action.task] = action.backbone
            elif isinstance(action, Start):
                assert action.backbone not in self.serving
                self.serving.append(action.backbone)
                self.started[action.backbone] = self.now
            elif isinstance(action, Stop):
                assert action.backbone in self.started
                assert action.backbone not in self.places.values()
                self.serving.remove(action.backbone)
                del self.started[action.backbone]
            self.done.append((self.now, action))

    def run(self, seconds: float, each: Callable[[list[Action]], None] = lambda _: None) -> list[Action]:
        """What is done in so many seconds."""
        end, found = self.now + seconds, []
        while self.now < end:
            actions = self.step()
            each(actions)
            found += actions
        return found

    def times(self, kind: type[Action]) -> list[float]:  # type: ignore[valid-type]
        return [at for at, action in self.done if isinstance(action, kind)]


def world(*loads: float, backbones: int = 2, **more: object) -> World:
    """All tasks on `b0`."""
    tasks = {f"t{number}": load for number, load in enumerate(loads)}
    return World(tasks, dict.fromkeys(tasks, "b0"), [f"b{number}" for number in range(backbones)], **more)  # type: ignore[arg-type]


def test_an_overload_that_lasts_is_taken_off() -> None:
    one = world(*[0.2] * 8)
    assert one.run(SURGE_S) == []
    told, *moves = one.run(1.0)
    assert isinstance(told, Overloaded)
    assert told == Overloaded("b0", "1.60 of its capacity is asked for; tasks move: 4", "done")
    assert [type(each) for each in moves] == [Rebind] * 4
    assert one.used() == pytest.approx({"b0": 0.8, "b1": 0.8})
    assert one.run(600.0) == [], "what is balanced stays"


def test_what_is_not_far_beyond_has_to_last_longer() -> None:
    one = world(*[0.1] * 10)
    assert one.run(OVER_S) == []
    moves = [each for each in one.run(1.0) if isinstance(each, Rebind)]
    assert len(moves) == 2
    assert one.used() == pytest.approx({"b0": 0.8, "b1": 0.2})


@pytest.mark.parametrize(("load", "requests"), [(0.2, SURGE_REQUESTS), (0.13, OVER_REQUESTS)])
def test_of_few_requests_more_time_tells(load: float, requests: int) -> None:
    one = world(*[load] * 8)
    seen = one.observed()
    rare = replace(seen, signals={name: replace(each, requests=20.0) for name, each in seen.signals.items()})
    assert not any(one.elastic.decide(rare, 0.1 * tenth) for tenth in range(requests // 2))
    assert one.elastic.decide(rare, requests / 20)


def test_a_task_that_was_moved_by_a_wrong_estimate_moves_on_and_not_back() -> None:
    one = world(*[0.2] * 8, backbones=3)
    one.run(2.0)
    moved = {task for task, place in one.places.items() if place != "b0"}
    (second,) = {one.places[task] for task in moved}
    one.loads = {task: 0.35 if task in moved else 0.05 for task in one.loads}
    last = max(one.times(Rebind))
    again = [each for each in one.run(60.0) if isinstance(each, Rebind)]
    assert again
    assert {each.former for each in again} == {second}
    assert "b0" not in {each.backbone for each in again}, "although that one has most room for them"
    assert min(at for at in one.times(Rebind) if at > last) - last >= AGAIN_S
    assert one.run(300.0) == []


def test_where_one_would_only_go_back_another_moves() -> None:
    one = world(*[0.2] * 8)
    one.run(2.0)
    moved = {task for task, place in one.places.items() if place == "b1"}
    kept = min(set(one.places) - moved)
    one.places[kept] = "b1"  # by hand
    one.loads = {task: 0.2 if task in moved else 0.02 for task in one.loads} | {kept: 0.4}
    again = [each for each in one.run(30.0) if isinstance(each, Rebind)]
    assert {(each.task, each.backbone) for each in again} == {(kept, "b0")}


def queued(one: World, wait_s: float) -> Observed:
    """What waits on `b0` takes so long."""
    seen = one.observed()
    return replace(seen, signals={**seen.signals, "b0": replace(seen.signals["b0"], wait_s=wait_s)})


def test_a_surge_whose_queue_is_long_already_is_taken_off_at_once() -> None:
    one = world(*[0.2] * 8, slo=0.5)
    assert one.elastic.decide(queued(one, 0.1), 0.0) == [], "a queue of a fifth of the SLO"
    told, *moves = one.elastic.decide(queued(one, 0.3), 0.0)
    assert isinstance(told, Overloaded)
    assert "what waits takes 300 ms" in told.why
    assert [type(each) for each in moves] == [Rebind] * 4


def test_a_long_queue_alone_is_no_overload() -> None:
    one = world(*[0.1] * 7, slo=0.5)
    one.loads["t0"] = 0.4
    assert one.asked()["b0"] == pytest.approx(1.0)
    assert one.elastic.decide(queued(one, 0.4), 0.0) == [], "it has to last"
    idle = world(*[0.2] * 8)
    assert idle.elastic.decide(queued(idle, 1.9), 0.0) == [], "without an SLO nothing is late so soon"
    assert idle.elastic.decide(queued(idle, 2.1), 0.1) != []


def test_room_is_left_on_the_former_backbone_for_what_waits_there() -> None:
    moved = {}
    for wait_s in (0.0, 0.6):
        one = world(*[0.1] * 12, slo=0.5)
        decided = [one.elastic.decide(queued(one, wait_s), now) for now in (0.0, SURGE_S)]
        moved[wait_s] = max(sum(isinstance(each, Rebind) for each in actions) for actions in decided)
    assert moved == {0.0: 4, 0.6: 7}


def test_of_two_backbones_that_cannot_bear_it_the_second_is_not_filled_beyond_what_it_bears() -> None:
    one = world(*[0.3] * 8, slo=0.5)
    one.carry_out(one.elastic.decide(queued(one, 0.6), 0.0))
    assert one.asked()["b0"] > HIGH, "it is still too much"
    assert 0 < one.asked()["b1"] <= TIGHT


def test_a_short_peak_and_what_is_not_busy_move_nothing() -> None:
    one = world(*[0.2] * 8)
    for _ in range(20):
        one.run(one.step_s)
        calm = replace(one, loads=dict.fromkeys(one.loads, 0.1)).observed()
        assert one.elastic.decide(calm, one.now) == []
    idle = Observed(one.situation, {"b0": Signal(0.5)})
    assert all(one.elastic.decide(idle, 100.0 + number) == [] for number in range(10))


def test_a_little_more_than_the_cap_moves_tasks_only_where_requests_are_late() -> None:
    one = world(0.3, 0.3, 0.25)
    assert one.run(10.0) == []
    late = Observed(one.situation, {"b0": Signal(0.85, 0.2, "t1")})
    one.elastic.decide(late, 20.0)
    told, move = one.elastic.decide(late, 20.0 + OVER_S)
    assert isinstance(told, Overloaded)
    assert "20% of the requests of t1 are late" in told.why
    assert isinstance(move, Rebind)


def test_where_the_cap_is_not_enough_others_are_filled_further() -> None:
    one = world(*[0.17] * 10)
    one.run(2.0)
    assert sorted(one.used().values()) == pytest.approx([0.85, 0.85])
    assert max(one.used().values()) <= TIGHT


def test_no_more_moves_in_a_minute_than_allowed_and_the_largest_first() -> None:
    one = world(0.3, 0.2, 0.1, *[0.05] * 20, own=Settings(moves_per_minute=3))
    moves = [each for each in one.run(30.0) if isinstance(each, Rebind)]
    assert len(moves) == 3
    sizes = [one.loads[each.task] for each in moves]
    assert sizes == sorted(sizes, reverse=True)


def test_a_backbone_is_started_where_none_has_room_and_removed_when_it_is_idle() -> None:
    one = world(*[0.2] * 7, backbones=1)
    first = one.run(START_OVER_S - 1)
    assert [type(each) for each in first] == [Overloaded]
    (start,) = one.run(2.0)
    assert isinstance(start, Start)
    assert start.backbone == "base-2"
    moves = one.run(LOADING_S + 2)
    assert {(each.former, each.backbone) for each in moves if isinstance(each, Rebind)} == {("b0", "base-2")}
    assert max(one.used().values()) <= TIGHT
    assert one.run(400.0) == []
    one.loads = dict.fromkeys(one.loads, 0.07)
    assert one.run(one.own.idle_s - 1) == []
    back = one.run(DRAIN_S)
    assert {each.backbone for each in back if isinstance(each, Rebind)} == {"b0"}
    assert [type(each) for each in one.run(DRAIN_S)] == [Stop]
    assert one.serving == ["b0"]
    assert one.run(600.0) == []


def test_what_others_have_started_stays_however_idle() -> None:
    one = world(0.1, 0.1, backbones=3)
    assert one.run(2000.0) == []


def test_nothing_starts_without_memory_nor_where_that_is_forbidden() -> None:
    for one in (world(*[0.2] * 7, backbones=1, room=1), world(*[0.2] * 7, backbones=1, own=Settings(start=False))):
        (told,) = one.run(60.0)
        assert isinstance(told, Overloaded)
        assert told.outcome.startswith("nothing can be done at the moment; b0 is beyond its limits")


def test_one_that_does_not_start_is_removed_and_not_tried_again_soon() -> None:
    one = world(*[0.2] * 7, backbones=1, never_load=True)
    one.run(RETRY_S)
    assert len(one.times(Start)) == len(one.times(Stop)) == 1
    one.run(RETRY_S)
    assert len(one.times(Start)) == 2
    silent = Observed(one.situation, {}, frozenset({"base-2"}))
    elastic = Elastic(Settings())
    assert elastic.decide(silent, 0.0) == []
    (stop,) = elastic.decide(silent, LOAD_S)
    assert isinstance(stop, Stop)
    assert "it has not answered for 900 s" in stop.why
    assert elastic.decide(silent, LOAD_S + 1) == [], "stopping it may fail: not again at once"


def test_a_task_that_is_too_much_for_any_backbone_is_left_alone_with_its_own() -> None:
    one = world(1.5, 0.1, 0.1)
    one.run(30.0)
    assert one.places == {"t0": "b0", "t1": "b1", "t2": "b1"}
    assert one.run(300.0) == []


# -- properties


@st.composite
def worlds(draw: st.DrawFn) -> World:
    tasks = {f"t{number}": draw(st.floats(0, 0.7)) for number in range(draw(st.integers(1, 14)))}
    names = [f"b{number}" for number in range(draw(st.integers(1, 4)))]
    return World(
        tasks,
        {task: draw(st.sampled_from(names)) for task in tasks},
        names,
        draw(st.integers(1, 6)),
        Settings(moves_per_minute=draw(st.integers(1, 8)), idle_s=draw(st.sampled_from([30.0, 90.0]))),
        draw(st.sampled_from([None, 0.05, 0.5])),
        step_s=2.0,
    )


def copy_of(one: World) -> World:
    return World(dict(one.loads), dict(one.places), list(one.serving), one.room, one.own, one.slo, one.step_s)


def check_bounded(one: World) -> None:
    moves = one.times(Rebind)
    for at in moves:
        assert sum(at <= other < at + 60.0 for other in moves) <= one.own.moves_per_minute
    last: dict[str, float] = {}
    left: dict[tuple[str, str], float] = {}
    for at, action in one.done:
        if isinstance(action, Rebind):
            assert at - last.get(action.task, float("-inf")) >= AGAIN_S
            assert at - left.get((action.task, action.backbone), float("-inf")) >= one.own.hold_s, "back again"
            last[action.task] = left[action.task, action.former] = at


@settings(max_examples=8)
@given(worlds())
def test_at_constant_load_it_comes_to_rest_and_takes_nothing_back(one: World) -> None:
    again = copy_of(one)
    excess = [_excess(one)]

    def check(actions: list[Action]) -> None:
        excess.append(_excess(one))
        if any(isinstance(each, Rebind) for each in actions):
            assert excess[-1] <= excess[-2] + 1e-9, "no move that makes it worse"

    one.run(240.0, check)
    check_bounded(one)
    visited: dict[str, set[str]] = {}
    for _, action in one.done:
        if isinstance(action, Rebind):
            assert action.backbone not in visited.setdefault(action.task, {action.former}), "no move back"
            visited[action.task].add(action.backbone)
    assert len(one.times(Start)) <= one.room
    at_rest = one.now
    one.run(60.0)
    assert not [action for at, action in one.done if at >= at_rest and isinstance(action, Rebind | Start)]
    again.run(300.0)
    assert again.done == one.done, "the same again"


def _excess(one: World) -> float:
    return sum(max(0.0, asked - CAP) for asked in one.asked().values())


@settings(max_examples=15)
@given(worlds(), st.randoms(use_true_random=False))
def test_whatever_the_load_does_moves_are_bounded(one: World, random: object) -> None:
    for _ in range(20):
        one.loads = {task: random.uniform(0, 0.7) for task in one.loads}  # type: ignore[attr-defined]
        one.run(random.uniform(0.4, 20.0))  # type: ignore[attr-defined]
    check_bounded(one)


@settings(max_examples=15)
@given(worlds())
def test_every_move_takes_load_off_what_is_overloaded_to_where_it_fits(one: World) -> None:
    for _ in range(30):
        before, places = one.asked(), dict(one.places)
        actions = one.step()
        for action in actions:
            if isinstance(action, Rebind) and action.former not in one.started:
                assert before[action.former] > CAP
                assert one.asked()[action.backbone] <= TIGHT + 1e-6
                assert one.asked()[action.former] < before[action.former]
        assert places == one.places or actions


def test_a_backbone_that_cannot_be_written_is_tried_once_a_minute() -> None:
    world = World({"a": 0.7, "b": 0.7}, {"a": "base", "b": "base"}, ["base"])
    tried = []
    for _ in range(500):
        tried += [
            world.now for action in world.elastic.decide(world.observed(), world.now) if isinstance(action, Start)
        ]
        world.now += world.step_s
    assert len(tried) == 4
    assert all(later - earlier >= 60.0 for earlier, later in pairwise(tried))
