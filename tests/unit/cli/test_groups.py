"""`fmplex group ...`: groups are written, listed, shown and removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_task
from live_server import FakeServer, status, task
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex import Unreachable
from fmplex.cli import app as cli
from fmplex.cli import groups, live
from fmplex_backend.repository.grouping import GroupRepository

EMBED = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tiny_repository(tmp_path)
    for tag, name in enumerate(("one", "two")):
        write_task(root, name, tag, task=EMBED)
    return root


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """It serves the group `both`, of which one task is missing."""
    told = task("both", tag=9, members=("one", "two"), requests=5, error="'two' is missing")
    server = FakeServer({"base": status(told)})
    server.loaded = {"both"}
    monkeypatch.setattr(live, "Client", server.client)
    monkeypatch.setattr(groups, "Client", server.client)
    return server


def run(*arguments: Any, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_create_and_replace(root: Path) -> None:
    assert run("group", "create", "both", "one", "two", "-r", root)[0] == "both: one, two\n"
    assert "both exists" in run("group", "create", "both", "one", "-r", root, code=1)[1]
    said = json.loads(run("group", "create", "both", "two", "-r", root, "--replace", "--slo-ms", 50, "--json")[0])
    _, spec = GroupRepository(root).group("both")
    assert said == {"group": "both", "tasks": ["two"], "tag": spec.vfm, "loaded": False}
    assert ([member.name for member in spec.members], spec.slo) == (["two"], 0.05)


def test_create_loads_it_on_a_server(root: Path, server: FakeServer) -> None:
    run("group", "create", "both", "one", "two", "-r", root, "--server", "there:8001")
    assert server.calls == [("load", "both")]


def test_a_wrong_backbone_is_told(root: Path) -> None:
    said = run("group", "create", "both", "one", "-r", root, "--backbone", "other", code=1)[1]
    assert "a group is of one backbone: one on base, other is asked for" in said


def test_list_and_show(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("group", "create", "both", "one", "two", "-r", root)
    (row,) = json.loads(run("group", "list", "-r", root, "--json")[0])
    assert (row["tasks"], row["state"], row["requests"]) == (["one", "two"], "serving", 5)
    printed, said = run("group", "list", "-r", root)
    assert "one,_two" in printed
    assert said == "fmplex: both: serving: 'two' is missing\n"
    assert "tasks: one, two" in run("group", "show", "both", "-r", root)[0]
    assert "there is no group 'one'" in run("group", "show", "one", "-r", root, code=1)[1]


def test_without_a_server_the_repository_tells(root: Path, server: FakeServer) -> None:
    server.problem = Unreachable("nobody there")
    run("group", "create", "both", "one", "two", "-r", root)
    GroupRepository(root).remove("two")
    printed, said = run("group", "list", "-r", root)
    assert "both" in printed
    assert "fmplex: both: not as its tasks are: there is no task 'two'" in said


def test_remove(root: Path, server: FakeServer) -> None:
    run("group", "create", "both", "one", "-r", root)
    assert run("group", "remove", "both", "-r", root, "--server", "there:8001")[0] == "both: removed\n"
    assert ("unload", "both") in server.calls
    assert not (root / "both").exists()
    assert "there is no group 'one'" in run("group", "remove", "one", "-r", root, code=1)[1]
    assert (root / "one").exists()


def test_what_tasks_say_of_their_groups(root: Path) -> None:
    run("group", "create", "both", "one", "two", "-r", root)
    said = run("task", "set", "one", "--new-tag", "-r", root)[0]
    assert "written anew, to be loaded too: both" in said
    assert [row["task"] for row in json.loads(run("task", "list", "-r", root, "--json")[0])] == ["one", "two"]
    assert run("task", "check", "-r", root)[0].splitlines()[-1] == "two: ok"
    assert run("task", "check", root / "both")[0] == f"{root / 'both'}: ok\n"
    assert "two: removed; still asked for by the groups both" in run("task", "remove", "two", "-r", root)[0]
    assert "there is no task 'two'" in run("task", "check", root / "both", code=1)[1]
