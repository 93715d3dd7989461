"""What is told of what is done."""

from __future__ import annotations

import errno

import pytest

from fmplex_backend.errors import TaskProblem
from fmplex_controller.records.events import Event
from fmplex_controller.records.journal import Journal


@pytest.mark.parametrize("error", [TaskProblem("it has tasks"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_fails_is_told_with_the_reason(error: Exception) -> None:
    journal, told = Journal(), list[Event]()
    journal.listeners.append(told.append)
    with pytest.raises(type(error)), journal.telling("backbone-started", "second", "no room"):
        raise error
    assert [(each.kind, each.reason, each.outcome) for each in told] == [("backbone-started", "no room", str(error))]
