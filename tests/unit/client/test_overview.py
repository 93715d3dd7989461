"""Rows of a glance: what is known now, and rates over the last seconds of one process."""

from __future__ import annotations

from typing import Any

from live_server import status, task

from fmplex.client.overview import History
from fmplex_backend.status import BackboneStatus, CandidateStatus


def told(first: dict[str, Any], second: dict[str, Any], **fields: Any) -> BackboneStatus:
    update = {"pid": 7, "started_at": 5.0, **fields}
    return status(task("a", account=1, **first), task("b", account=2, **second)).model_copy(update=update)


def test_a_first_look_has_no_rates() -> None:
    history = History()
    now = told({"service_s": 3.0, "requests": 5}, {"service_s": 1.0}, busy_s=4.0)
    history.add(now, 100.0)
    row = history.task(now.tasks[0])
    assert (row.share_total, row.share, row.requests_per_s, row.requests) == (0.75, None, None, 5)
    backbone = history.backbone("base")
    assert (backbone.busy, backbone.busy_s, backbone.tasks, backbone.pid) == (None, 4.0, 2, 7)


def test_rates_are_those_of_the_last_seconds() -> None:
    history = History(window_s=10.0)
    history.add(told({"service_s": 90.0}, {}, busy_s=90.0), 0.0)
    before = told({"service_s": 100.0, "requests": 10, "queue_s": 1.0}, {}, busy_s=100.0, batches=5, items=20)
    history.add(before, 50.0)
    now = told(
        {"service_s": 103.0, "requests": 30, "queue_s": 2.0, "misses": 5, "failures": {"invalid": 2, "refused": 1}},
        {"service_s": 1.0},
        busy_s=104.0,
        batches=15,
        items=80,
    )
    history.add(now, 60.0)
    row = history.task(now.tasks[0])
    assert (row.share, row.requests_per_s, row.wait_ms, row.misses_per_s, row.failures) == (0.75, 2.0, 50.0, 0.5, 3)
    backbone = history.backbone("base")
    assert (backbone.busy, backbone.batch_items, backbone.requests_per_s) == (0.4, 6.0, 2.0)


def test_another_process_is_looked_at_anew() -> None:
    history = History()
    history.add(told({"service_s": 9.0}, {}, busy_s=9.0), 0.0)
    history.add(now := told({"service_s": 1.0}, {}, busy_s=1.0, started_at=50.0), 5.0)
    assert history.backbone("base").busy is None
    assert history.task(now.tasks[0]).share is None
    history.forget_others([])
    assert history.latest() == {}
    assert history.backbone("base", "dead", "killed").model_dump(exclude_none=True) == {
        "backbone": "base",
        "state": "dead",
        "error": "killed",
        "tasks": 0,
        "family": "",
        "model": "",
        "dtype": "",
    }


def test_a_task_that_came_meanwhile_and_one_that_is_refused() -> None:
    history = History()
    history.add(status(task("a", account=1, service_s=1.0)), 0.0)
    now = status(
        task("a", account=1, service_s=2.0), task("c", account=3, service_s=3.0), task("d", state="refused", error="x")
    )
    history.add(now, 2.0)
    rows = [history.task(each) for each in now.tasks]
    assert [row.share for row in rows] == [0.25, None, None]
    assert (rows[2].state, rows[2].error, rows[2].queued) == ("refused", "x", None)


def test_a_canarys_load_is_the_tasks_and_its_end_makes_no_rate_negative() -> None:
    """The last row is of the first look after the end of the canary, whose counts are gone."""
    history, rows = History(), []
    tried = CandidateStatus(role="canary", version=2, account=3, share=0.5)
    for at, own, canaries in ((0.0, 10, 100), (10.0, 20, 130), (20.0, 30, None)):
        counts = {"requests": canaries, "service_s": canaries, "queue_s": canaries, "misses": canaries, "queued": 7}
        candidates = () if canaries is None else (tried.model_copy(update=counts),)
        now = told(
            {"requests": own, "service_s": own, "queue_s": own, "misses": own, "queued": 1, "candidates": candidates},
            {"requests": own, "service_s": own},
        )
        history.add(now, at)
        rows.append(history.task(now.tasks[0]))
    first, both, after = rows
    assert (first.requests, first.queued, first.share_total) == (110, 8, 110 / 120)
    assert (both.requests_per_s, both.misses_per_s, both.wait_ms, both.share) == (4.0, 4.0, 1000.0, 0.8)
    assert (after.requests_per_s, after.misses_per_s, after.wait_ms, after.share) == (1.0, 1.0, 1000.0, 0.5)
    assert history.backbone("base").requests_per_s == 2.0
