"""What is told of what is done."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from live_server import status

from fmplex_backend.errors import TaskProblem
from fmplex_controller.records.events import Event, read_events
from fmplex_controller.records.journal import Journal
from fmplex_controller.records.ledger import FILE


@pytest.mark.parametrize("error", [TaskProblem("it has tasks"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_fails_is_told_with_the_reason(error: Exception) -> None:
    journal, told = Journal(), list[Event]()
    journal.listeners.append(told.append)
    with pytest.raises(type(error)), journal.telling("backbone-started", "second", "no room"):
        raise error
    assert [(each.kind, each.reason, each.outcome) for each in told] == [("backbone-started", "no room", str(error))]


def test_a_ledger_that_is_damaged_costs_no_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    journal = Journal.opened(tmp_path, tmp_path / "models", "localhost:8001")
    journal.tell("loaded", "a")
    journal.sample(status())
    journal.close()
    assert [event.kind for event in read_events(tmp_path)] == ["loaded"]
    assert (
        f"usage is not recorded: {tmp_path / FILE}: usage cannot be recorded there: file is not a database"
        in caplog.text
    )
