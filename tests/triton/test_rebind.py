"""Tasks that change their backbones on a real server while they are called; plan and profile from the command line."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from elastic_server import asked, elastic, places
from reference import Reference, difference
from typer.testing import CliRunner

from fmplex.cli.app import app
from fmplex_backend.errors import ServerProblem
from fmplex_backend.profiles import read_profile
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.elastic import Settings
from fmplex_controller.sidecar.rebinding import rebind
from fmplex_controller.sidecar.triton import Triton
from testing.adapters import lora
from testing.models import minilm
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

BACKBONES = ("first", "second")
TASKS = ("tuned", "plain")
MOVES = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("rebind")
    repository = folder / "repository"
    for name in BACKBONES:
        write_backbone(repository, name, threads="1", vfm_slots="16")
    terms = {"slo_ms": "20"}  # under load requests are late
    write_task(repository, Task("tuned", 0, adapter=lora(), backbone="first", parameters=terms))
    write_task(repository, Task("plain", 1, seed=1, backbone="first", parameters=terms))
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture
def triton(server: Serving) -> Iterator[Triton]:
    triton = Triton(server.grpc_url)
    yield triton
    triton.close()


def run(server: Serving, *arguments: str) -> str:
    given = ["--repository", str(server.repository), "--server", server.grpc_url]
    result = CliRunner().invoke(app, [*arguments, *given])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_nothing_fails_while_tasks_move_and_answers_stay_the_same(server: Serving, triton: Triton) -> None:
    references = {name: Reference(minilm(), server.repository / name / "1") for name in TASKS}
    stop, numbers = threading.Event(), itertools.count()
    stubs = {name: server.stub(name).pid for name in BACKBONES}

    def ask() -> list[str]:
        problems = []
        with server.client() as client:
            while not stop.is_set():
                number = next(numbers)
                task, text = TASKS[number % 2], f"question number {number}"
                answer = client.ask_one(task, text)
                if answer.error:
                    problems.append(answer.message)
                elif number % 20 < 2 and (found := difference(answer.outputs, 0, references[task](text))):
                    problems.append(f"{task}: {found}")
        return problems

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        for number in range(MOVES):
            moved = rebind(
                server.repository,
                triton,
                TASKS[number % 2],
                BACKBONES[1 - number // 2 % 2],
                journal=Journal(),
                why="",
            )
            assert moved is not None
        stop.set()
        assert [each.result() for each in asked] == [[]] * 4
    served = {task.name for task in triton.status("first").tasks if task.state == "serving"}
    assert served == set(TASKS)
    assert stubs == {name: server.stub(name).pid for name in BACKBONES}


def test_a_backbone_that_does_not_answer_gets_no_task(server: Serving, triton: Triton) -> None:
    write_backbone(server.repository, "absent", threads="1")
    before = (server.repository / "tuned" / "config.pbtxt").read_bytes()
    with pytest.raises(ServerProblem, match="absent"):
        rebind(server.repository, triton, "tuned", "absent", journal=Journal(), why="")
    assert (server.repository / "tuned" / "config.pbtxt").read_bytes() == before
    with server.client() as client:
        client.ask_one("tuned", "is it still there").good()
    for file in sorted((server.repository / "absent").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (server.repository / "absent").rmdir()


@pytest.mark.slow  # what is an overload depends on how fast the machine is at the moment
def test_an_overloaded_backbone_gives_a_task_away_by_itself_and_no_request_fails(server: Serving) -> None:
    assert set(places(server).values()) == {"first"}
    with elastic(server, Settings(start=False)) as told, asked(server, TASKS) as problems:
        eventually(lambda: any(event.kind == "rebound" for event in told), "a task moves", 30.0)
    assert not problems
    kinds = [(event.kind, event.outcome) for event in told if event.kind in ("overloaded", "rebound")]
    assert kinds == [("overloaded", "done"), ("rebound", "done")]
    assert sorted(places(server).values()) == ["first", "second"]


def test_the_command_line_profiles_plans_and_rebinds(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMPLEX_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("FMPLEX_RECORDS", str(tmp_path / "records"))
    measured = json.loads(
        run(server, "profile", "first", "--rows", "1,4", "--tokens", "8,32", "--times", "2", "--json")
    )
    profile = read_profile(Path(measured["file"]))
    assert {(point.rows, round(point.tokens)) for point in profile.points} == {(1, 8), (4, 8), (1, 32), (4, 32)}
    assert profile.memory > 2**26
    for task in TASKS:
        run(server, "rebind", task, "first")
    run(server, "rebind", "tuned", "second", "--reason", "to see")
    document = json.loads(run(server, "plan", "--seconds", "0.5", "--json", "--no-stop", "--memory", "64"))
    assert {(each["task"], each["backbone"]) for each in document["bindings"]} == {
        ("tuned", "second"),
        ("plain", "first"),
    }
    shown = run(server, "plan", "--seconds", "0.5", "--apply", "--memory", "64")
    assert "so_that_second_can_stop" in shown, "a pipe gets no blanks within a cell"
    assert "done: stopped second" in shown
    assert not server.has("second")
    assert (server.repository / "second" / "UNLOADED").exists()
    told = [json.loads(line) for line in run(server, "events", "--since", "1h", "--json").splitlines()]
    told = told[-4:]  # before them what was not on `first`
    assert [(event["kind"], event["model"]) for event in told] == [
        ("rebound", "tuned"),
        ("planned", ""),
        ("rebound", "tuned"),
        ("backbone-stopped", "second"),
    ]
    assert all(event["outcome"] == "done" for event in told)
    assert "to see" in told[0]["reason"]
    with server.client() as client:
        client.ask_one("tuned", "it has moved back").good()
