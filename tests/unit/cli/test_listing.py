"""`fmplex task list` and `show`: what is wrong with a task is said, and a pipe can cut it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_config, write_task
from live_server import FakeServer, status, task
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex import Unreachable
from fmplex.cli import app as cli
from fmplex.cli import live
from fmplex_backend.status import CandidateStatus

EMBED = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tiny_repository(tmp_path)
    for tag, name in enumerate(("one", "two")):
        write_task(root, name, tag, task=EMBED)
    write_task(root, "orphan", 5, backbone="elsewhere", task=EMBED)
    return root


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    told = (
        task("one", queued=4, requests=9, service_s=1.0, cache_hits=7, cache_misses=2),
        task("two", tag=1, state="refused", error="2/x: short"),
    )
    server = FakeServer({"base": status(*told)})
    server.loaded = {"one", "two"}
    monkeypatch.setattr(live, "Client", server.client)
    return server


def run(*arguments: Any, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(cli.app, ["task", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def document(*arguments: Any) -> Any:
    return json.loads(run(*arguments, "--json")[0])


def test_what_a_canary_counts_is_the_tasks(root: Path, server: FakeServer) -> None:
    canary = CandidateStatus(role="canary", version=2, account=2, queued=3, requests=5, cache_hits=1)
    one, two = server.backbones["base"].tasks
    server.backbones = {"base": status(one.model_copy(update={"candidates": (canary,)}), two)}
    assert document("list", "-r", root)[0]["queue"] == 7
    assert document("show", "one", "-r", root)["requests"] == 14


def test_a_refused_task_does_not_look_healthy(root: Path) -> None:
    one, orphan, two = document("list", "-r", root)
    assert (one["task"], one["state"], one["error"], one["queue"], one["share"]) == ("one", "serving", None, 4, 1.0)
    assert (two["task"], two["state"], two["error"]) == ("two", "refused", "2/x: short")
    assert (orphan["task"], orphan["tag"], orphan["state"]) == ("orphan", 5, "not served")
    assert "does not serve its backbone 'elsewhere'" in orphan["error"]


def test_a_file_that_may_be_a_tasks_is_told_of(root: Path) -> None:
    (root / "torn").mkdir()
    (root / "torn" / "config.pbtxt").write_bytes(b"\xff\xfe")
    _, err = run("list", "-r", root)
    assert f"fmplex: torn: it may be a task, but {root / 'torn' / 'config.pbtxt'} is not UTF-8" in err


def test_columns_are_cut_by_awk(root: Path) -> None:
    out, err = run("list", "-r", root)
    lines = [line.split() for line in out.splitlines()]
    assert len({len(line) for line in lines}) == 1
    assert [line[lines[0].index("state")] for line in lines[1:]] == ["serving", "not_served", "refused"]
    assert "fmplex: two: refused: 2/x: short" in err
    assert "fmplex: one" not in err


def test_without_a_server_the_files_alone_are_shown(root: Path, server: FakeServer) -> None:
    server.problem = Unreachable("gone")
    write_config(root, "half", 7)
    rows = {row["task"]: row for row in document("list", "-r", root)}
    assert rows["one"]["state"] is None
    assert rows["half"]["state"] == rows["orphan"]["state"] == "refused"
    assert "there is no backbone 'elsewhere'" in rows["orphan"]["error"]
    out, _ = run("list", "-r", root)
    assert "queue" not in out.splitlines()[0].split()
    run("list", "-r", root, "--server", "host", code=3)


def test_show(root: Path) -> None:
    shown = document("show", "one", "-r", root)
    assert (shown["state"], shown["requests"], shown["versions"]) == ("serving", 9, [1])
    assert shown["task.json"]["decoder"]["kind"] == "embedding"
    out, _ = run("show", "two", "-r", root)
    assert "state: refused" in out
    assert "error: 2/x: short" in out


def test_show_of_a_task_whose_answers_are_kept(root: Path) -> None:
    assert "cache_hits" not in document("show", "one", "-r", root)
    write_config(root, "one", 0, cache=True)
    shown = document("show", "one", "-r", root)
    assert (shown["cache"], shown["cache_hits"], shown["cache_misses"]) == (True, 7, 2)


def test_show_of_what_cannot_be_read(root: Path, server: FakeServer) -> None:
    server.problem = Unreachable("gone")
    assert "there is no backbone" in document("show", "orphan", "-r", root)["error"]
    (root / "one" / "1" / "task.json").write_text("{")
    shown = document("show", "one", "-r", root)
    assert "not readable as JSON" in shown["error"]
    assert shown["task.json"] is None
