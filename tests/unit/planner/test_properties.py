"""What holds for every plan, on random situations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import affine, situations

from fmplex_controller.planner.baselines import instance_per_task, spread
from fmplex_controller.planner.loads import CAP, Fleet
from fmplex_controller.planner.max_share import max_share
from fmplex_controller.planner.situation import Model, Plan, Server, Situation, Task

EXAMPLES = settings(max_examples=25, deadline=None)


def fleet_of(situation: Situation, plan: Plan) -> Fleet:
    return Fleet(plan.applied_to(situation))


@EXAMPLES
@given(situations(), st.booleans())
def test_memory_is_never_exceeded(situation: Situation, split: bool) -> None:
    backbones_alone = Fleet(replace(situation, bindings=()))
    for site in fleet_of(situation, max_share(situation, split=split)).sites.values():
        assert site.free >= 0 or (not any(load.parts for load in site.loads) and backbones_alone.sites), (
            "no tasks there"
        )


@EXAMPLES
@given(situations(), st.booleans())
def test_a_task_is_bound_once_to_a_backbone_and_wholly_or_not_at_all(situation: Situation, split: bool) -> None:
    plan = max_share(situation, split=split)
    pairs = Counter((each.task, each.backbone) for each in plan.bindings)
    assert all(count == 1 for count in pairs.values())
    shares: Counter[str] = Counter()
    for binding in plan.bindings:
        shares[binding.task] += binding.share  # type: ignore[assignment]
    assert all(share == pytest.approx(1) for share in shares.values())
    assert shares.keys() | plan.unplaced.keys() == {task.name for task in situation.tasks}
    assert not shares.keys() & plan.unplaced.keys()
    models = {backbone.name: backbone.model for backbone in plan.backbones}
    own = {task.name: task.model for task in situation.tasks}
    assert all(models[each.backbone] == own[each.task] for each in plan.bindings)
    parts = Counter(each.task for each in plan.bindings)
    before = Counter(each.task for each in situation.bindings)
    assert all(count <= (2 if split else max(1, before[task])) for task, count in parts.items())


@EXAMPLES
@given(situations(existing=False), st.booleans())
def test_from_nothing_no_backbone_is_beyond_its_limits(situation: Situation, split: bool) -> None:
    plan = max_share(situation, split=split)
    assert all(used <= CAP + 1e-6 for used in plan.used.values())
    assert not [remark for remark in plan.remarks if "beyond" in remark]


@EXAMPLES
@given(situations(), st.booleans())
def test_a_plan_of_its_own_result_changes_nothing(situation: Situation, split: bool) -> None:
    plan = max_share(situation, split=split)
    again = max_share(plan.applied_to(situation), split=split)
    assert again.changes_nothing
    assert (again.bindings, again.backbones, again.unplaced.keys()) == (
        plan.bindings,
        plan.backbones,
        plan.unplaced.keys(),
    )


@EXAMPLES
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_does_not_matter(situation: Situation, random: Random) -> None:
    shuffled = {
        name: list(getattr(situation, name)) for name in ("servers", "models", "tasks", "backbones", "bindings")
    }
    for each in shuffled.values():
        random.shuffle(each)
    other = Situation(**{name: tuple(each) for name, each in shuffled.items()})
    assert max_share(other) == max_share(situation)


@EXAMPLES
@given(situations())
def test_nothing_moves_where_all_is_within_limits_and_no_backbone_can_be_spared(situation: Situation) -> None:
    plan = max_share(situation, stop=False)
    settled = plan.applied_to(situation)
    more = replace(settled, tasks=(*settled.tasks, Task("late", settled.models[0].name, 0.1, 8)))
    moved = {move.task for move in max_share(more, stop=False).moves}
    assert moved <= {"late", *plan.unplaced}


@EXAMPLES
@given(situations(existing=False))
def test_there_are_never_more_backbones_than_by_the_baselines(situation: Situation) -> None:
    plan = max_share(situation)
    for baseline in (instance_per_task(situation), spread(situation)):
        if not baseline.unplaced:
            assert not plan.unplaced
            assert len(plan.backbones) <= len(baseline.backbones)


@EXAMPLES
@given(st.lists(st.floats(0.1, 200), min_size=1, max_size=12))
def test_batches_grow_with_the_demand(rates: list[float]) -> None:
    """Tasks together take less of a backbone than the sum of what each takes alone, at larger batches."""
    model = Model("m", 100, affine(5e-3, 2e-5), max_batch=32)
    tasks = tuple(Task(f"t{number}", "m", rate, 16) for number, rate in enumerate(rates))
    situation = Situation((Server("s", 10_000, 100),), (model,), tasks)
    plan = max_share(situation)
    alone = instance_per_task(situation)
    assert sum(plan.used.values()) <= sum(alone.used.values()) + 1e-9
