"""The simulator against cases that can be worked out by hand, and what holds for every history."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.families.passes import plan_passes
from fmplex_backend.scheduling import POLICIES, CostModel
from fmplex_backend.scheduling.simulator import Arrival, Served, simulate, single_pass
from fmplex_backend.types import PassShape

COST = CostModel(fixed=1.0, per_token=0.1)  # a pass of n tokens takes 1 + n/10 seconds


def finishes(served: Sequence[Served]) -> list[tuple[int, float]]:
    """Task and finish of each, as they were served."""
    return [(each.arrival.task, pytest.approx(each.finish)) for each in served]


def at(time: float, *tasks: int, tokens: int = 10) -> list[Arrival]:
    """Requests that arrive together."""
    return [Arrival(time, task, tokens) for task in tasks]


# -- by hand


def test_a_request_takes_what_the_cost_model_says() -> None:
    (served,) = simulate(at(3.0, 0), [1.0], COST)
    assert served == Served(Arrival(3.0, 0, 10), pytest.approx(3.0 + 2.0))


def test_what_arrives_during_a_batch_waits_for_the_next() -> None:
    arrivals = at(0.0, 0) + at(0.5, 0, 0)  # the first runs alone until 2; two rows of 10 tokens then take 3 s
    assert finishes(simulate(arrivals, [1.0], COST)) == [(0, 2.0), (0, 5.0), (0, 5.0)]


def test_a_request_at_the_very_end_of_a_batch_joins_the_next() -> None:
    assert finishes(simulate(at(0.0, 0) + at(2.0, 0), [1.0], COST)) == [(0, 2.0), (0, 4.0)]


def test_an_idle_backbone_waits_for_the_next_arrival() -> None:
    assert finishes(simulate(at(0.0, 0) + at(100.0, 0), [1.0], COST)) == [(0, 2.0), (0, 102.0)]


def test_a_batch_holds_no_more_than_max_items() -> None:
    served = simulate(at(0.0, 0, 0, 0), [1.0], COST, max_items=2)
    assert finishes(served) == [(0, 3.0), (0, 3.0), (0, 5.0)]


def test_a_batch_ends_where_it_pays_enough() -> None:
    served = simulate(at(0.0, 0, 0, 0, 0), [1.0], COST, max_items=4, efficiency=0.75)  # rows of 1 s, and 1 s a pass
    assert finishes(served) == [(0, 3.0), (0, 3.0), (0, 6.0), (0, 6.0)]  # 2 in 3 s: 0.83 of 4 in 5 s; 1 in 2 s: 0.62


def test_rows_are_padded_to_the_longest_of_their_pass() -> None:
    arrivals = at(0.0, 0, tokens=10) + at(0.0, 0, tokens=30)
    assert finishes(simulate(arrivals, [1.0], COST)) == [(0, 1 + 0.1 * 60)] * 2
    apart = simulate(arrivals, [1.0], COST, plan_passes=lambda lengths, predict: [[1], [0]])
    assert finishes(apart) == [(0, 2 + 0.1 * 40)] * 2


def test_passes_are_planned_by_the_scheduler_s_estimates() -> None:
    """Which start at the cost that it is given: two passes where padding costs more than the second one."""
    arrivals = [Arrival(0.0, 0, tokens) for tokens in (8, 8, 8, 200)]
    padded, cut = simulate(arrivals, [1.0], COST), simulate(arrivals, [1.0], COST, plan_passes=plan_passes)
    assert max(each.finish for each in padded) == pytest.approx(1 + 0.1 * 800)
    assert max(each.finish for each in cut) == pytest.approx(2 + 0.1 * 224)


# -- policies


def test_fifo_serves_in_order_of_arrival() -> None:
    arrivals = at(0.0, 0) + at(0.1, 0, 0, 0, 0) + at(0.2, 1)
    served = simulate(arrivals, [1.0, 1.0], COST, policy="fifo", max_items=1)
    assert [each.arrival.task for each in served] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("policy", ["bfq", "stfq"])
def test_a_fair_policy_does_not_let_one_wait_behind_a_backlog(policy: str) -> None:
    arrivals = at(0.0, 0) + at(0.1, 0, 0, 0, 0) + at(0.2, 1)
    served = simulate(arrivals, [1.0, 1.0], COST, policy=policy, max_items=1)
    assert [each.arrival.task for each in served].index(1) <= 2


def test_stfq_runs_one_request_at_a_time() -> None:
    assert finishes(simulate(at(0.0, 0, 0), [1.0], COST, policy="stfq")) == [(0, 2.0), (0, 4.0)]


def test_backlogged_tasks_are_served_by_weight() -> None:
    served = simulate(at(0.0, *[0, 1] * 200), [3.0, 1.0], COST, max_items=4)
    counts = Counter(each.arrival.task for each in served[:200])  # while both are backlogged
    assert counts[0] / counts[1] == pytest.approx(3.0, rel=0.05)


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(KeyError, match="lifo"):
        simulate(at(0.0, 0), [1.0], COST, policy="lifo")


# -- several backbones


def test_tasks_are_dealt_out_in_turn() -> None:
    arrivals = at(0.0, 0, 1, 2)  # 0 and 2 share the first backbone
    served = simulate(arrivals, [1.0] * 3, COST, backbones=2)
    assert finishes(served) == [(0, 3.0), (2, 3.0), (1, 2.0)]


def test_backbones_do_not_feel_each_other() -> None:
    rng = random.Random(1)
    arrivals = [Arrival(rng.uniform(0, 50), rng.randrange(6), rng.randint(1, 40)) for _ in range(120)]
    together = simulate(arrivals, [1.0] * 6, COST, backbones=3)
    for number in range(3):
        own = [each for each in together if each.arrival.task % 3 == number]
        assert own == simulate([each for each in arrivals if each.task % 3 == number], [1.0] * 6, COST)


# -- any history

HISTORY = st.lists(
    st.builds(Arrival, st.floats(0, 20), st.integers(0, 3), st.integers(1, 64)),
    max_size=40,
)


@given(HISTORY, st.sampled_from(list(POLICIES)), st.integers(1, 3), st.integers(1, 8), st.sampled_from([1.0, 0.6]))
def test_every_arrival_is_served_once_and_no_work_is_lost(
    arrivals: list[Arrival], policy: str, backbones: int, max_items: int, efficiency: float
) -> None:
    passes: list[float] = []

    def counted(lengths: Sequence[int], predict: object) -> list[list[int]]:
        passes.append(COST.predict(PassShape(len(lengths) * max(lengths), max(lengths), 0)))
        assert len(lengths) <= max_items
        return single_pass(lengths, COST.predict)

    served = simulate(
        arrivals, [1.0, 2.0, 1.0, 4.0], COST, policy=policy, backbones=backbones, max_items=max_items,
        efficiency=efficiency, plan_passes=counted,
    )  # fmt: skip
    assert Counter(each.arrival for each in served) == Counter(arrivals)
    for each in served:
        alone = COST.predict(PassShape(each.arrival.tokens, each.arrival.tokens, 0))
        assert each.finish >= each.arrival.time + alone - 1e-9
    if backbones == 1 and arrivals:  # never idle while something waits: busy from the first arrival on, but for gaps
        assert max(each.finish for each in served) <= max(each.time for each in arrivals) + sum(passes) + 1e-9


def test_the_order_of_arrivals_in_the_list_does_not_matter() -> None:
    arrivals = [Arrival(0.3 * number, number % 2, 5 + number) for number in range(30)]
    assert simulate(arrivals[::-1], [1.0, 1.0], COST) == simulate(arrivals, [1.0, 1.0], COST)


def test_the_cost_model_that_is_handed_in_learns_nothing() -> None:
    cost = CostModel(fixed=1.0, per_token=0.1)
    simulate([Arrival(0.0, 0, tokens) for tokens in (5, 50, 500)], [1.0], cost, max_items=1)
    assert (cost.fixed, cost.per_token, cost.per_area) == (COST.fixed, COST.per_token, COST.per_area)
