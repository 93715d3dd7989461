"""The versions of a task side by side, as `fmplex status` shows them."""

from __future__ import annotations

from live_server import task

from fmplex.client.versions import rows_of
from fmplex_backend.status import CandidateStatus

CANARY = CandidateStatus(
    role="canary",
    version=3,
    share=0.05,
    account=7,
    requests=50,
    failures={"execution": 2},
    queue_s=0.5,
    compute_s=1.0,
    served_requests=950,
    served_failures=1,
    served_queue_s=1.9,
    served_compute_s=9.5,
)
SHADOW = CandidateStatus(
    role="shadow",
    version=4,
    account=8,
    requests=90,
    failures={"not_finite": 10},
    compute_s=0.5,
    queue_s=900.0,
    compared=180,
    agreed=171,
    dropped=100,
)


def test_a_task_that_tries_nothing_has_no_rows() -> None:
    assert rows_of([task("a"), task("b")]) == []


def test_a_canary_beside_the_version_that_serves() -> None:
    serves, canary = rows_of([task("a"), task("b", version=2, candidates=(CANARY,))])
    assert (serves.task, serves.version, serves.role) == ("b", 2, "serves")
    assert (serves.share, serves.requests, serves.failures) == (0.95, 950, 1)
    assert (serves.wait_ms, serves.run_ms, serves.agreement) == (2.0, 10.0, None)
    assert (canary.version, canary.role, canary.share, canary.requests, canary.failures) == (3, "canary", 0.05, 50, 2)
    assert (canary.wait_ms, canary.run_ms, canary.agreement) == (10.0, 20.0, None)


def test_a_shadow_has_an_agreement_and_no_waiting_time() -> None:
    (serves, shadow) = rows_of([task("b", candidates=(SHADOW,))])
    assert serves.share == 1
    assert (shadow.role, shadow.agreement, shadow.requests, shadow.failures) == ("shadow", 0.95, 90, 10)
    assert (shadow.share, shadow.wait_ms, shadow.run_ms) == (0.45, None, 5.0)


def test_before_anything_was_compared() -> None:
    (_, shadow) = rows_of([task("b", candidates=(CandidateStatus(role="shadow", version=4, account=8),))])
    assert (shadow.agreement, shadow.share, shadow.run_ms, shadow.requests) == (None, None, None, 0)


def test_one_that_is_refused_leaves_all_to_the_version_that_serves() -> None:
    refused = CANARY.model_copy(update={"account": None, "error": "one/3/task.json: decoder: it is missing"})
    (serves, canary) = rows_of([task("b", candidates=(refused,))])
    assert serves.share == 1
    assert (canary.error, canary.requests, canary.share) == (refused.error, None, None)
