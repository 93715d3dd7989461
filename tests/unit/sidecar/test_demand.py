"""Demand by task, from what backbones tell again and again."""

from __future__ import annotations

import pytest
from live_server import status, task

from fmplex_backend.status import CandidateStatus
from fmplex_controller.sidecar.demand import Demands


def test_rates_tokens_and_waits_come_of_two_readings() -> None:
    demands = Demands()
    demands.observe(status(task("a", requests=10, items=20, tokens=200.0, queue_s=1.0, service_s=3.0)), 5.0)
    assert demands.of("a", "base").rows == 0
    demands.observe(status(task("a", requests=20, items=60, tokens=1000.0, queue_s=2.0, service_s=4.0, misses=5)), 7.0)
    found = demands.of("a", "base")
    assert (found.rows, found.tokens, found.queue_s, found.misses, found.service) == (20, 20, 0.1, 0.5, 0.5)
    assert found.served == 20


def test_what_is_refused_or_waits_is_asked_for_too() -> None:
    demands = Demands()
    demands.observe(status(task("a", requests=10, items=20)), 0.0)
    demands.observe(status(task("a", requests=20, items=40, queued=30, failures={"queue_full": 10, "invalid": 5})), 1.0)
    assert demands.of("a", "base").rows == 20 + 2 * 40


def test_what_runs_is_asked_for_before_it_is_served() -> None:
    demands = Demands()
    demands.observe(status(task("a", requests=10, items=20)), 0.0)
    demands.observe(status(task("a", requests=10, items=20, queued=3, running=5)), 1.0)
    assert demands.of("a", "base").rows == 16
    assert demands.unserved("a", "base") == 16
    assert demands.unserved("b", "base") == 0
    demands.observe(status(task("a", requests=18, items=36)), 2.0)
    assert demands.unserved("a", "base") == 0


def test_it_is_smoothed_from_the_plain_mean_on() -> None:
    demands, now, rows = Demands(memory_s=2.0), 0.0, 0
    demands.observe(status(task("a")), now)
    for rate in (10, 30):
        now, rows = now + 0.1, rows + rate
        demands.observe(status(task("a", requests=rows, items=rows)), now)
    assert demands.of("a", "base").rows == pytest.approx(200, rel=0.05)
    for _ in range(100):
        now += 0.1
        demands.observe(status(task("a", requests=rows, items=rows)), now)
    assert demands.of("a", "base").rows < 2


def test_a_new_process_and_a_task_that_has_left_are_no_negative_demand() -> None:
    demands = Demands()
    demands.observe(status(task("a", requests=10, items=10)), 0.0)
    demands.observe(status(task("a", requests=30, items=30)), 1.0)
    demands.observe(status(task("a", requests=1, items=1)), 2.0)
    assert demands.of("a", "base").rows == 20
    demands.observe(status(task("a", state="leaving")), 3.0)
    assert demands.of("a", "base").rows == 0
    assert not demands.all


def test_it_goes_along_with_a_task_that_is_rebound() -> None:
    demands = Demands()
    demands.observe(status(task("a")), 0.0)
    demands.observe(status(task("a", requests=10, items=10)), 1.0)
    demands.carry("a", demands.of("a", "base"), "other", 1.5)
    assert demands.of("a", "other").rows == 10
    other = status().model_copy(update={"name": "other"})
    demands.observe(other, 2.0)
    assert demands.of("a", "other").rows == 10, "the backbone may have told this before it had the task"
    demands.observe(other, 4.0)
    assert demands.of("a", "other").rows == 0


def test_a_canarys_load_is_the_tasks_while_it_comes_and_when_it_ends() -> None:
    demands, tried = Demands(), CandidateStatus(role="canary", version=2, account=2, share=0.5)
    demands.observe(status(task("a", requests=10, items=10, tokens=100.0)), 0.0)
    rows = []
    for now, own, canaries in ((1.0, 20, 40), (2.0, 30, 80), (3.0, 40, None)):
        counts = {} if canaries is None else {"requests": canaries, "items": canaries, "tokens": 10.0 * canaries}
        candidates = () if canaries is None else (tried.model_copy(update={**counts, "service_s": now / 2}),)
        told = task("a", requests=own, items=own, tokens=10.0 * own, service_s=now, candidates=candidates)
        before = Demands(memory_s=1e-3, _tracks=demands._tracks)  # what was seen last counts alone
        before.observe(status(told), now)
        rows.append(before.of("a", "base"))
    assert [round(each.rows, 6) for each in rows] == [50, 50, 10]
    assert [round(each.tokens, 6) for each in rows] == [10, 10, 10]
    assert rows[1].service == pytest.approx(1.5)
