"""The log of events: what is appended is read again, whatever ended the writer."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from fmplex_controller.records import events as events_module
from fmplex_controller.records.events import (
    CONTROLLER,
    FORMER_FILES,
    SERVER,
    EventLog,
    Following,
    SharedEventLog,
    event_now,
    file_of,
    latest_events,
    read_events,
)


def write(folder: Path, *kinds: str, writer: str = CONTROLLER, model: str = "a") -> None:
    log = EventLog(folder, writer)
    for kind in kinds:
        log.add(event_now(kind, model, "because", "done"))
    log.close()


def kinds(folder: Path, **asked: str) -> list[str]:
    return [event.kind for event in read_events(folder, **asked)]


def test_a_line_of_json_for_each_in_order(tmp_path: Path) -> None:
    write(tmp_path, "loaded")
    write(tmp_path, "server-ended", writer=SERVER, model="")
    write(tmp_path, "unloaded", model="b")
    assert kinds(tmp_path) == ["loaded", "server-ended", "unloaded"]
    assert kinds(tmp_path, model="b") == ["unloaded"]
    first = json.loads(file_of(tmp_path, CONTROLLER).read_text().splitlines()[0])
    assert first.keys() == {"time", "kind", "model", "reason", "outcome"}
    (last,) = read_events(tmp_path, model="b")
    assert list(read_events(tmp_path, since=last.time)) == [last]
    assert list(read_events(tmp_path, since=last.time + timedelta(seconds=1))) == []
    assert list(read_events(tmp_path / "nowhere")) == []


def test_names_that_are_no_text_and_reasons_without_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path, CONTROLLER)
    log.add(event_now("quarantined", "x\udcff", "two\nlines " + "x" * 10_000))
    log.close()
    (event,) = read_events(tmp_path)
    assert event.model == r"x\xff"
    assert event.reason.startswith("two\nlines x")
    assert len(event.reason) == events_module.MOST_CHARACTERS
    assert len(file_of(tmp_path, CONTROLLER).read_text().splitlines()) == 1


def test_a_line_that_was_cut_short_costs_no_other(tmp_path: Path) -> None:
    write(tmp_path, "loaded", "reloaded")
    file = file_of(tmp_path, CONTROLLER)
    file.write_bytes(file.read_bytes()[:-20])
    assert kinds(tmp_path) == ["loaded"]
    write(tmp_path, "unloaded")
    assert kinds(tmp_path) == ["loaded", "unloaded"]
    with file.open("ab") as out:
        out.write(b'[]\n{"time": "2026-01-31T00:00:00", "kind": "no zone"}\n\xff\xfe\n')
    assert kinds(tmp_path) == ["loaded", "unloaded"]


def test_files_are_rotated_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_BYTES", 1000)
    write(tmp_path, *(f"kind-{number}" for number in range(100)))
    found = kinds(tmp_path)
    assert found == [f"kind-{number}" for number in range(100 - len(found), 100)]
    assert 20 < len(found) < 60
    assert len(list(tmp_path.iterdir())) == FORMER_FILES + 1
    write(tmp_path, "server-ended", writer=SERVER)
    assert [event.kind for event in latest_events(tmp_path, 3)] == ["kind-98", "kind-99", "server-ended"]
    assert len(latest_events(tmp_path, 1000)) == len(found) + 1
    (last,) = latest_events(tmp_path, 1)
    assert latest_events(tmp_path, 9, since=last.time) == [last]
    assert latest_events(tmp_path, 9, model="b") == []


def test_new_ones_are_followed_over_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_BYTES", 1000)
    write(tmp_path, "before")
    following = Following(tmp_path)
    assert following.new() == []
    found = []
    for number in range(40):
        write(tmp_path, f"kind-{number}", writer=(CONTROLLER, SERVER)[number % 2])
        found += [event.kind for event in following.new()]
    assert found == [f"kind-{number}" for number in range(40)]
    file = file_of(tmp_path, SERVER)
    half = event_now("half").model_dump_json()
    with file.open("a") as out:
        out.write(half[:10])
    assert following.new() == []
    with file.open("a") as out:
        out.write(half[10:] + "\n")
    assert [event.kind for event in following.new()] == ["half"]
    following.close()


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path, CONTROLLER)
    threads = [
        threading.Thread(target=lambda: [log.add(event_now("loaded", "a", "x" * 500)) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(kinds(tmp_path)) == 200


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "gone", CONTROLLER)
    for _ in range(3):
        log.add(event_now("loaded"))
    assert caplog.text.count("no event can be written") == 1


def test_commands_append_to_one_file_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_BYTES", 1000)  # it is rotated meanwhile

    def command(name: str) -> None:
        for number in range(5):
            SharedEventLog(tmp_path).add(event_now("rebound", f"{name}{number}"))

    threads = [threading.Thread(target=command, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write(tmp_path, "loaded", model="last")
    found = [event.model for event in read_events(tmp_path)]
    assert sorted(found[:-1]) == sorted(f"{name}{number}" for name in "abc" for number in range(5))
    assert [event.model for event in latest_events(tmp_path, 1)] == ["last"]


def test_a_command_whose_event_cannot_be_written_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").touch()
    SharedEventLog(tmp_path / "taken").add(event_now("rebound"))
    assert "no event can be written to" in caplog.text
