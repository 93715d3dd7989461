"""Deadlines."""

from __future__ import annotations

from fmplex.client.deadline import Deadline


def test_time_runs_out() -> None:
    now = 10.0
    deadline = Deadline.after(2.0, lambda: now)
    assert (deadline.remaining, deadline.passed) == (2.0, False)
    now = 11.5
    assert (deadline.remaining, deadline.passed) == (0.5, False)
    now = 12.5
    assert (deadline.remaining, deadline.passed) == (0.0, True)


def test_no_limit() -> None:
    deadline = Deadline.after(None, lambda: 1e9)
    assert deadline.remaining is None
    assert not deadline.passed


def test_no_time_at_all() -> None:
    assert Deadline.after(0.0, lambda: 1.0).passed
