"""`fmplex status`, `events` and `usage`, over a server that tells made-up things and files of a controller."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import FakeServer, status, task
from rich.console import Console
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex.cli import app as cli
from fmplex.cli import events as events_command
from fmplex.cli import live
from fmplex.cli import status as status_command
from fmplex_backend.errors import Unreachable
from fmplex_backend.status import CandidateStatus
from fmplex_controller.records.events import CONTROLLER, EventLog, event_now
from fmplex_controller.records.ledger import Ledger

NAME = "[red]b[/red]"  # rich would take it for markup


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    monkeypatch.setenv("FMPLEX_RECORDS", str(folder))
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    told = status(task("a", account=1, service_s=3.0), task(NAME, account=2, service_s=1.0, state="refused", error="x"))
    fake = FakeServer({"base": told.model_copy(update={"busy_s": 4.0})})
    fake.loaded = {"a", NAME}
    monkeypatch.setattr(live, "Client", fake.client)
    monkeypatch.setattr(status_command, "FIRST_S", 0.01)
    return fake


@pytest.fixture
def root(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tiny_repository(tmp_path / "models")
    bound = {"a": ("base", None), NAME: ("base", None), "c": ("other", None)}
    monkeypatch.setattr(status_command.ModelRepository, "tasks", lambda self: bound)
    return root


def run(*words: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def record(folder: Path, *kinds: str, model: str = "a") -> None:
    log = EventLog(folder, CONTROLLER)
    for kind in kinds:
        log.add(event_now(kind, model, "because\nof this", "done" if kind != "refused" else "it is\nwrong"))
    log.close()


def test_tables_in_a_pipe(root: Path, records: Path) -> None:
    record(records, *(f"kind-{number}" for number in range(20)))
    backbones, tasks, events = run("status", "-r", root).strip().split("\n\n")
    assert backbones.splitlines()[1].split("\t")[:4] == ["base", "serving", "2", "0"]
    assert backbones.splitlines()[2].split("\t")[:2] == ["other", "not_served"]
    assert [line.split("\t")[:3] for line in tasks.splitlines()[1:]] == [
        [NAME, "base", "refused"],
        ["a", "base", "serving"],
        ["c", "other", "not_served"],
    ]
    assert [line.split()[2] for line in events.splitlines()] == [f"kind-{number}" for number in range(12, 20)]


def test_as_json(root: Path, records: Path) -> None:
    record(records, "loaded")
    found = json.loads(run("status", "-r", root, "--json"))
    assert found["server"] == "localhost:8001"
    assert [row["task"] for row in found["tasks"]] == [NAME, "a", "c"]
    assert found["tasks"][1]["share_total"] == 0.75
    assert found["events"][0]["kind"] == "loaded"


def test_versions_that_are_tried_have_a_table(root: Path, records: Path, server: FakeServer) -> None:
    shadow = CandidateStatus(role="shadow", version=3, account=9, requests=8, compared=8, agreed=6, compute_s=0.016)
    refused = CandidateStatus(role="canary", version=2, error="no [b]head[/b]")
    tries = task("a", account=1, candidates=(refused, shadow))
    server.backbones["base"] = server.backbones["base"].model_copy(update={"tasks": (tries,)})
    record(records, "loaded")
    *_, versions, _ = run("status", "-r", root).strip().split("\n\n")
    assert [line.split("\t") for line in versions.splitlines()[1:]] == [
        ["a", "1", "serves", "100.0%", "0", "-", "-", "0", "-"],
        ["a", "2", "canary", "-", "-", "-", "-", "-", "-"],
        ["a", "3", "shadow", "100.0%", "8", "-", "2", "0", "75.0%"],
    ]
    assert json.loads(run("status", "-r", root, "--json"))["versions"][1]["error"] == "no [b]head[/b]"
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        console.print(status_command.rendered(status_command.Looker(root, "localhost:8001", None).look()))
    assert "a: version 2 as a canary is refused: no [b]head[/b]" in captured.get()


def test_in_a_terminal_names_are_no_markup(root: Path, records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glance = status_command.Looker(root, "localhost:8001", None).look()
    console = Console(width=160, force_terminal=True, color_system=None)
    console.print(status_command.rendered(glance))
    told = capsys.readouterr().out
    assert NAME in told
    assert f"{NAME}: refused: x" in told


def test_without_a_controller_it_says_so(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert "no controller of the server localhost:8001" in run("status", "-r", root)
    for command in ("events", "usage"):
        assert "Recorded are: none" in run(command, "-r", root, code=1)


def test_without_a_server(root: Path, records: Path, server: FakeServer) -> None:
    server.problem = Unreachable("nobody there")
    assert "nobody there" in run("status", "-r", root, code=3)


def test_events_of_one_in_words_and_as_json(root: Path, records: Path) -> None:
    record(records, "loaded", "refused")
    record(records, "unloaded", model="b")
    lines = run("events", "a").splitlines()
    assert [line[20:] for line in lines] == ["loaded a: because of this", "refused a: because of this -> it is wrong"]
    assert [json.loads(line)["model"] for line in run("events", "--json", "--since", "1h").splitlines()] == [
        "a",
        "a",
        "b",
    ]
    assert run("events", "--since", "0s") == ""
    assert "is no time" in " ".join(run("events", "--since", "soon", code=2).replace("│", " ").split())


def test_events_are_followed(root: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(records, "before")
    looks = iter(range(3))

    def sleep(seconds: float) -> None:
        if (look := next(looks, None)) is None:
            raise KeyboardInterrupt
        record(records, f"later-{look}")

    monkeypatch.setattr(events_command.time, "sleep", sleep)
    told = run("events", "--follow", "--json", code=130).splitlines()
    assert [json.loads(line)["kind"] for line in told[:4]] == ["before", "later-0", "later-1", "later-2"]


def test_usage_in_each_form(root: Path, records: Path) -> None:
    ledger = Ledger(records)
    told = status(task("a", account=1, service_s=3.0, requests=7, items=9), task(NAME, account=2, service_s=1.0))
    ledger.sample(told.model_copy(update={"started_at": 5.0, "busy_s": 4.01}), time.time())
    ledger.close()
    table = run("usage", "-r", root).splitlines()
    assert table[1].split("\t") == ["a", "base", "3.000", "75.0%", "0.000", "7", "9"]
    assert table[3] == "base: busy 4.010 s, charged 4.000 s"
    assert run("usage", "-r", root, "--csv", "--since", "1h").splitlines()[1] == "base,a,3.000000,0.000000,7,9"
    assert json.loads(run("usage", "-r", root, "--json"))["backbones"][0]["charged_s"] == 4.0
    assert json.loads(run("usage", "--json", "--since", "2999-01-01"))["tasks"] == []
    run("usage", "--json", "--csv", code=2)
