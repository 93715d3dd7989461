"""The versions of a task side by side, while one is tried beside the one that serves: rows for tables and JSON.

Pure functions of what a backbone tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel

from fmplex_backend.status import CandidateStatus, TaskStatus


class VersionRow(BaseModel):
    """A version, since the one that is tried came. `None` stands for what there is not, or not yet."""

    task: str
    version: int | None
    role: Literal["serves", "canary", "shadow"]
    share: float | None = None  # of the requests: that it answers, or, of a shadow, whose copies were compared
    requests: int | None = None
    wait_ms: float | None = None  # mean; of a shadow none, since its copies wait for spare time
    run_ms: float | None = None  # mean, from being scheduled to being finished
    failures: int | None = None
    agreement: float | None = None  # the part of a shadow's answers that are the served version's
    error: str = ""  # why it is refused


def rows_of(tasks: Iterable[TaskStatus]) -> list[VersionRow]:
    """A row for the served version of each task that tries one, and one for each that it tries."""
    return [row for task in tasks for row in _rows(task)]


def _rows(task: TaskStatus) -> Iterator[VersionRow]:
    if not task.candidates:
        return
    first = task.candidates[0]  # of two, the counts of the served version are those since the canary came
    yield VersionRow(
        task=task.name,
        version=task.version,
        role="serves",
        share=1 - sum(each.share or 0.0 for each in task.candidates if not each.error),
        requests=first.served_requests,
        wait_ms=_mean_ms(first.served_queue_s, first.served_requests),
        run_ms=_mean_ms(first.served_compute_s, first.served_requests),
        failures=first.served_failures,
    )
    for each in task.candidates:
        yield _canary(task, each) if each.role == "canary" else _shadow(task, each)


def _canary(task: TaskStatus, told: CandidateStatus) -> VersionRow:
    row = VersionRow(task=task.name, version=told.version, role="canary", error=told.error)
    if told.account is not None:
        row.share = 0.0 if told.error else told.share
        row.requests, row.failures = told.requests, sum(told.failures.values())
        row.wait_ms = _mean_ms(told.queue_s, told.requests)
        row.run_ms = _mean_ms(told.compute_s, told.requests)
    return row


def _shadow(task: TaskStatus, told: CandidateStatus) -> VersionRow:
    row = VersionRow(task=task.name, version=told.version, role="shadow", error=told.error)
    if told.account is not None:
        failures = sum(told.failures.values())
        asked = told.requests + failures + told.dropped
        row.share = told.requests / asked if asked else None
        row.requests, row.failures, row.agreement = told.requests, failures, told.agreement
        row.run_ms = _mean_ms(told.compute_s, told.requests + failures)
    return row


def _mean_ms(seconds: float, requests: int) -> float | None:
    return 1000 * seconds / requests if requests else None
