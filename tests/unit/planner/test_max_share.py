"""Max-Share step by step: the fullest that fits, two that are there, a new one; and what has to move."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_cases import affine

from fmplex_controller.planner.loads import CAP
from fmplex_controller.planner.max_share import max_share
from fmplex_controller.planner.situation import Backbone, Binding, Model, Plan, Server, Situation, Task

TOKENS = 10
MODEL = Model("m", 100, affine(1e-3, 1e-4), max_batch=8, label="base")
FULL = 8 / (1e-3 + 8e-3)  # rows per second in full batches of 10 tokens


def task(name: str, load: float, **more: float) -> Task:
    """A task that takes `load` of a backbone's capacity."""
    return Task(name, "m", load * FULL, TOKENS, **more)  # type: ignore[arg-type]


def situation(*tasks: Task, backbones: int = 2, servers: int = 2, **bound: str) -> Situation:
    """Backbones b0 ... on servers s0 ... in turn, each of which holds three and runs them side by side."""
    return Situation(
        tuple(Server(f"s{number}", 300, 3) for number in range(servers)),
        (MODEL,),
        tasks,
        tuple(Backbone(f"b{number}", "m", f"s{number % servers}") for number in range(backbones)),
        tuple(Binding(name, backbone) for name, backbone in bound.items()),
    )


def places(plan: Plan) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for each in plan.bindings:
        found.setdefault(each.task, {})[each.backbone] = pytest.approx(each.share, abs=0.03)
    return found


def test_the_fullest_that_has_room_is_taken() -> None:
    plan = max_share(situation(task("a", 0.2), task("b", 0.4), task("new", 0.3), a="b0", b="b1"), stop=False)
    assert places(plan)["new"] == {"b1": 1}
    (move,) = plan.moves
    assert (move.task, move.before, move.after) == ("new", (), ("b1",))
    assert "the fullest of 2 that has room: 0.70 of 0.8" in move.reason


def test_one_that_is_too_full_is_passed_over() -> None:
    plan = max_share(situation(task("a", 0.2), task("b", 0.6), task("new", 0.3), a="b0", b="b1"), stop=False)
    assert places(plan)["new"] == {"b0": 1}


def test_a_load_is_split_over_two_before_a_backbone_is_started() -> None:
    given = situation(task("a", 0.5), task("b", 0.6), task("new", 0.4), a="b0", b="b1")
    plan = max_share(given)
    assert places(plan)["new"] == {"b1": 0.5, "b0": 0.5}
    assert not plan.starts
    assert max(plan.used.values()) <= CAP + 1e-6
    alone = max_share(given, split=False)
    assert places(alone)["new"] == {"base-2": 1}
    (start,) = alone.starts
    assert "new fits on none that is there" in start.reason


def test_what_may_neither_be_split_nor_get_a_new_one_is_not_placed() -> None:
    plan = max_share(
        situation(task("a", 0.5), task("b", 0.6), task("new", 0.4), a="b0", b="b1"), split=False, start=False
    )
    assert plan.unplaced == {"new": "no backbone of m has room for it"}


def test_what_is_too_much_for_one_backbone_gets_two() -> None:
    plan = max_share(situation(task("big", 1.2), backbones=0))
    assert len(places(plan)["big"]) == 2
    assert max_share(situation(task("big", 1.2), backbones=0), split=False).unplaced.keys() == {"big"}


def test_of_a_backbone_beyond_its_cap_the_smallest_task_that_helps_moves() -> None:
    tasks = (task("a", 0.1), task("b", 0.3), task("c", 0.6))
    plan = max_share(situation(*tasks, a="b0", b="b0", c="b0"), stop=False)
    assert [(move.task, move.after) for move in plan.moves] == [("b", ("b1",))]
    assert "b0 is at 1.00 of capacity" in plan.moves[0].reason


def test_what_fits_nowhere_stays_and_a_remark_says_so() -> None:
    tasks = (task("a", 0.5), task("b", 0.5), task("c", 0.7))
    plan = max_share(situation(*tasks, a="b0", b="b0", c="b1"), split=False, start=False)
    assert not plan.moves
    assert "b0 is beyond its limits, at 1.00 of its capacity" in plan.remarks[0]


def test_a_backbone_whose_tasks_fit_on_others_stops_but_the_last_one_stays() -> None:
    plan = max_share(situation(task("a", 0.2), task("b", 0.3), a="b0", b="b1"))
    assert [change.backbone.name for change in plan.stops] == ["b0"]
    assert places(plan) == {"a": {"b1": 1}, "b": {"b1": 1}}
    assert "so that b0 can stop" in plan.moves[0].reason
    idle = max_share(situation())
    assert [(change.backbone.name, change.reason) for change in idle.stops] == [("b1", "no task is bound to it")]


def test_memory_and_tags_bound_what_a_backbone_takes() -> None:
    heavy = situation(task("a", 0.1, memory=150), task("b", 0.1, memory=150), backbones=1, servers=1)
    assert max_share(heavy).unplaced.keys() == {"b"}
    few = replace(heavy, models=(replace(MODEL, slots=1),), tasks=(task("a", 0.1), task("b", 0.1)))
    assert len(max_share(few).backbones) == 2
    crowded = replace(few, bindings=(Binding("a", "b0"), Binding("b", "b0")))
    assert len({each.backbone for each in max_share(crowded).bindings}) == 2


def test_the_backbones_of_a_server_share_its_time() -> None:
    one = Situation((Server("s", 1000, 1),), (MODEL,), (task("a", 0.5), task("b", 0.5)))
    assert len(max_share(one).unplaced) == 1
    assert not max_share(replace(one, servers=(Server("s", 1000, 2),))).unplaced


def test_a_tight_slo_makes_batches_small_and_capacity_less() -> None:
    loose, tight = (max_share(situation(task("a", 0.3, slo=slo), backbones=1)) for slo in (1.0, 0.008))
    assert tight.used["b0"] > loose.used["b0"]
    hopeless = max_share(situation(task("a", 0.3, slo=0.001), backbones=1))
    assert places(hopeless) == {"a": {"b0": 1}}
    assert "its SLO of 1 ms is less than twice what one row takes" in hopeless.remarks[0]
