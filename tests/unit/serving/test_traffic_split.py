"""Parts of requests, by their ids: of the size that was asked for, and the same for the same id."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.serving.traffic_split import point

REQUESTS = 20_000


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("ids", ["{}", "request-{:08}", "client 7/{}", "a\0{}"])
def test_of_ids_that_count_up_a_part_is_met_nearly_exactly(share: float, ids: str) -> None:
    inside = sum(point("task/3", ids.format(number)) < share for number in range(REQUESTS))
    assert inside == pytest.approx(share * REQUESTS, abs=0.001 * REQUESTS)


@pytest.mark.parametrize("start", [0, 10**9, 10**17])
def test_wherever_the_counting_begins(start: int) -> None:
    inside = sum(point("task/3", str(start + number)) < 0.05 for number in range(REQUESTS))
    assert 0.048 <= inside / REQUESTS <= 0.052


def test_several_clients_that_count_each_for_themselves() -> None:
    ids = [f"client-{client}-{number}" for client in range(20) for number in range(1000)]
    assert 0.048 <= sum(point("task/3", each) < 0.05 for each in ids) / len(ids) <= 0.052


def test_random_ids_are_as_many_as_coins_would_say() -> None:
    ids = [str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128)) for number in range(REQUESTS)]
    assert 0.045 <= sum(point("task/3", each) < 0.05 for each in ids) / REQUESTS <= 0.055


@given(st.text(), st.text())
def test_an_id_stands_for_one_point(salt: str, request_id: str) -> None:
    assert 0 <= point(salt, request_id) <= 1
    assert point(salt, request_id) == point(salt, request_id)


def test_points_differ_from_task_to_task_and_from_version_to_version() -> None:
    chosen = [{each for each in range(1000) if point(salt, f"r{each}") < 0.1} for salt in ("a/3", "a/4", "b/3")]
    assert all(one != other for one, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True))


def test_more_is_more() -> None:
    """Whoever is in a canary of 5% is in it at 20%, too."""
    few, many = ({each for each in range(1000) if point("a/3", f"r{each}") < share} for share in (0.05, 0.2))
    assert few < many


def test_an_id_that_is_no_text() -> None:
    assert 0 <= point("a/3", "\udcff\udc80") < 1
    assert 0 <= point("a/3", "9" * 5000) < 1
