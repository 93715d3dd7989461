"""Cutting a batch into passes: exactly the cheapest cut, found by trying all of them on small batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_backend.families.passes import GRAIN, Predict, cut_into_portions, plan_passes
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import PassShape


def cost(fixed: float, per_token: float, per_area: float = 0.0) -> Predict:
    return CostModel(fixed, per_token, per_area).predict


def total(groups: Sequence[Sequence[int]], lengths: Sequence[int], predict: Predict) -> float:
    """Predicted seconds of these passes."""
    longest = [max(lengths[row] for row in group) for group in groups]
    return sum(predict(PassShape(len(group) * most, most, 0)) for group, most in zip(groups, longest, strict=True))


def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put rows into passes."""
    if not rows:
        yield []
        return
    for rest in partitions(rows[1:]):
        yield [[rows[0]], *rest]
        for position, group in enumerate(rest):
            yield [*rest[:position], [rows[0], *group], *rest[position + 1 :]]


SECONDS = st.floats(0.0, 1.0)
COSTS = st.builds(cost, SECONDS, st.floats(1e-6, 0.1), st.floats(0.0, 1e-3))


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 20).map(lambda n: n * GRAIN), min_size=1, max_size=7), predict=COSTS)
def test_no_other_way_costs_less(lengths: list[int], predict: Predict) -> None:
    best = min(total(groups, lengths, predict) for groups in partitions(list(range(len(lengths)))))
    assert total(plan_passes(lengths, predict), lengths, predict) == pytest.approx(best, rel=1e-9, abs=1e-15)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40), predict=COSTS)
def test_every_row_once_and_the_short_first(lengths: list[int], predict: Predict) -> None:
    groups = plan_passes(lengths, predict)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(groups)
    in_order = [lengths[row] for group in groups for row in group]
    assert in_order == sorted(lengths)
    assert total(groups, lengths, predict) <= total([list(range(len(lengths)))], lengths, predict) * (1 + 1e-9)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=20), predict=COSTS)
def test_lengths_of_one_grain_share_a_pass(lengths: list[int], predict: Predict) -> None:
    groups = plan_passes(lengths, predict)
    where = {row: number for number, group in enumerate(groups) for row in group}
    by_grain: dict[int, set[int]] = {}
    for row, length in enumerate(lengths):
        by_grain.setdefault(-(-length // GRAIN), set()).add(where[row])
    assert all(len(numbers) == 1 for numbers in by_grain.values())


def test_nothing() -> None:
    assert plan_passes([], cost(1, 1)) == []


def test_one_pass_where_a_second_costs_more_than_the_padding() -> None:
    assert plan_passes([16, 128, 64], cost(1.0, 1e-6)) == [[0, 2, 1]]


def test_many_passes_where_they_cost_nothing() -> None:
    assert plan_passes([128, 16, 64, 16], cost(0.0, 1e-3)) == [[1, 3], [2], [0]]


def test_one_long_text_does_not_make_all_the_others_long() -> None:
    lengths = [*[16] * 31, 512]
    assert plan_passes(lengths, cost(2e-3, 1e-4)) == [list(range(31)), [31]]


def test_nothing_is_worked_out_where_nothing_can_be_gained() -> None:
    asked: list[PassShape] = []

    def predict(shape: PassShape) -> float:
        asked.append(shape)
        return 1.0

    assert plan_passes([9, 12, 16] * 10, predict)[0][:2] == [0, 3]
    assert asked == []


# -- portions


def test_what_fits_into_a_batch_is_one_portion() -> None:
    assert cut_into_portions([5, 9, 2], max_rows=3, max_tokens=16) == [[0, 1, 2]]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    max_rows=st.integers(1, 32),
    max_tokens=st.integers(1, 400),
)
def test_portions_leave_room_for_others(lengths: list[int], max_rows: int, max_tokens: int) -> None:
    portions = cut_into_portions(lengths, max_rows=max_rows, max_tokens=max_tokens)
    assert sorted(row for portion in portions for row in portion) == list(range(len(lengths)))
    if len(portions) > 1:
        for portion in portions:
            tokens = sum(lengths[row] for row in portion)
            assert len(portion) == 1 or (len(portion) <= max_rows / 2 and tokens <= max_tokens / 8)
        longest = [max(lengths[row] for row in portion) for portion in portions]
        assert longest == sorted(longest)
