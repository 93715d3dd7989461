"""Weighted max-min shares, the fairness score and Jain's index, worked out by hand."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.harness.score import fairness, jain, max_min


def test_backlogged_tasks_share_by_weight() -> None:
    assert max_min([3, 1], [math.inf, math.inf], 1.0) == [0.75, 0.25]


def test_what_one_leaves_goes_to_the_others_by_weight() -> None:
    assert max_min([3, 1, 1], [0.2, math.inf, math.inf], 1.0) == pytest.approx([0.2, 0.4, 0.4])


def test_nobody_gets_more_than_its_demand() -> None:
    assert max_min([1, 1], [0.1, 0.2], 1.0) == [0.1, 0.2]


def test_shares_use_the_whole_capacity_or_meet_all_demands() -> None:
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randint(1, 6)
        weights = [rng.choice((1, 2, 5)) for _ in range(count)]
        demands = [rng.choice((rng.random(), math.inf)) for _ in range(count)]
        shares = max_min(weights, demands, 1.0)
        assert all(share <= demand + 1e-12 for share, demand in zip(shares, demands, strict=True))
        assert sum(shares) == pytest.approx(min(1.0, sum(demands)))


def test_a_fair_division_scores_one() -> None:
    assert fairness([0.75, 0.25], [3, 1], [math.inf, math.inf]) == 1.0


def test_an_equal_division_at_three_to_one_scores_a_half() -> None:
    """One gets 2/3 of its share; more than a share does not count."""
    assert fairness([0.5, 0.5], [3, 1], [math.inf, math.inf]) == pytest.approx(2 / 3)


def test_demands_that_are_met_score_one_whatever_the_weights() -> None:
    assert fairness([0.1, 0.6], [9, 1], [0.1, 0.62]) == 1.0


def test_jain() -> None:
    assert jain([2.0, 2.0, 2.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([0.0, 0.0]) == 0.0
