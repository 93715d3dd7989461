"""A task's status, and what of it is its canary's."""

from __future__ import annotations

import pytest
from live_server import task

from fmplex_backend.status import ADDED_UP, CandidateStatus, TaskStatus


def canary(account: int | None = 2, **fields: float) -> CandidateStatus:
    return CandidateStatus(role="canary", version=2, share=0.5, account=account, **fields)  # type: ignore[arg-type]


def test_what_a_canary_counted_is_the_tasks_once() -> None:
    shadow = CandidateStatus(role="shadow", version=3, account=3, requests=90, items=90, service_s=9.0)
    counts = dict.fromkeys(ADDED_UP, 2)
    tried = canary(**counts).model_copy(update={"failures": {"queue_full": 3, "invalid": 1}})
    own = task("a", account=1, **dict.fromkeys(ADDED_UP, 1), failures={"queue_full": 1}, candidates=(tried, shadow))
    found = own.with_canary
    assert {name: getattr(found, name) for name in ADDED_UP} == dict.fromkeys(ADDED_UP, 3)
    assert found.failures == {"queue_full": 4, "invalid": 1}
    assert found.with_canary == found
    assert found.candidates == (shadow,)


@pytest.mark.parametrize("tried", [(), (canary(None),)])
def test_without_one_that_is_tried_it_is_as_it_was(tried: tuple[CandidateStatus, ...]) -> None:
    own = task("a", account=1, requests=5, candidates=tried)
    assert own.with_canary is own


@pytest.mark.parametrize(
    ("later", "requests"), [((canary(requests=9),), 8), ((), 5), ((canary(3),), 5), ((canary(None),), 5)]
)
def test_a_canary_that_has_ended_is_no_part_of_what_was_counted_since(
    later: tuple[CandidateStatus, ...], requests: int
) -> None:
    before: TaskStatus = task("a", account=1, requests=5, candidates=(canary(requests=3),))
    assert before.with_canary_of(task("a", account=1, requests=6, candidates=later)).requests == requests
