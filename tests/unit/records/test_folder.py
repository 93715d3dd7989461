"""Where a controller records, and how readers find it."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from live_server import status, task

from fmplex_backend.errors import SetupProblem
from fmplex_controller.records import journal as journal_module
from fmplex_controller.records.events import Event, read_events
from fmplex_controller.records.folder import existing_folder, make_folder, records_folder
from fmplex_controller.records.journal import Journal
from fmplex_controller.records.since import time_of
from fmplex_controller.records.usage import read_usage


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FMPLEX_RECORDS", raising=False)
    return tmp_path / "state"


def test_one_for_each_server_and_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = records_folder(tmp_path / "models", "localhost:8001")
    monkeypatch.chdir(tmp_path)
    same = {records_folder(Path("models"), url) for url in ("127.0.0.1:8001", "grpc://[::1]:8001", "0.0.0.0:8001")}
    assert same == {here}
    others = {records_folder(Path("models"), url) for url in ("localhost:8011", "triton:8001", "10.0.0.1:8001")}
    assert len(others | {here, records_folder(Path("other"), "localhost:8001")}) == 5


def test_a_given_one_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMPLEX_RECORDS", str(tmp_path / "named"))
    assert records_folder(tmp_path, "a:1") == tmp_path / "named"
    assert records_folder(tmp_path, "a:1", tmp_path / "given") == tmp_path / "given"


def test_where_nothing_is_recorded_others_are_named(tmp_path: Path) -> None:
    make_folder(records_folder(tmp_path / "models", "triton:8001"), tmp_path / "models", "triton:8001")
    folder = existing_folder(tmp_path / "models", "triton:8001")
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SetupProblem, match=f"Recorded are: triton:8001 on {tmp_path}/models"):
        existing_folder(tmp_path / "other", "triton:8001")


def test_a_second_controller_records_nothing_until_the_first_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LOCK_S", 0.1)
    first = Journal.opened(tmp_path / "records", tmp_path, "a:1")
    second = Journal.opened(tmp_path / "records", tmp_path, "a:1")
    assert "another controller records there" in caplog.text
    heard: list[Event] = []
    second.listeners.append(heard.append)
    second.tell("loaded", "a")
    second.sample(status())
    first.tell("loaded", "b")
    assert [event.model for event in heard] == ["a"]
    assert [event.model for event in read_events(tmp_path / "records")] == ["b"]
    first.close()
    second.sample(status(task("a", account=1, service_s=1.0)).model_copy(update={"started_at": 5.0, "busy_s": 1.0}))
    second.tell("unloaded", "a")
    assert [event.model for event in read_events(tmp_path / "records")] == ["b", "a"]
    assert read_usage(tmp_path / "records").tasks[0].seconds == 1.0
    second.close()
    third = Journal.opened(tmp_path / "records", tmp_path, "a:1")
    assert third.folder == tmp_path / "records"
    third.close()


def test_a_place_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    journal = Journal.opened(tmp_path / "file" / "records", tmp_path, "a:1")
    assert "neither events nor usage are recorded" in caplog.text
    journal.tell("loaded", "a")
    Journal.of_server(tmp_path / "file" / "records", tmp_path, "a:1").tell("server-started")
    journal.close()


def test_a_ledger_that_fails_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    journal = Journal.opened(tmp_path, tmp_path, "a:1")
    sampled = status(task("a", account=1, service_s=1.0)).model_copy(update={"started_at": 5.0, "busy_s": 1.0})
    journal.sample(sampled)
    assert read_usage(tmp_path).tasks[0].seconds == 1.0
    assert journal._ledger is not None
    journal._ledger.close()
    for started in (6.0, 7.0):
        journal.sample(sampled.model_copy(update={"started_at": started}))
    assert caplog.text.count("usage cannot be recorded at the moment") == 1
    journal.close()


def test_times_that_people_name() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    assert time_of("") is None
    assert time_of("1.5h", now) == now - timedelta(minutes=90)
    assert time_of(" 2w ", now) == now - timedelta(days=14)
    assert time_of("2026-01-31T11:00+00:00") == now - timedelta(hours=1)
    for wrong in ("yesterday", "1y", "h", "99999999999d", "999999999w", "2026-13-01"):
        with pytest.raises(ValueError, match="is no time"):
            time_of(wrong, now)
