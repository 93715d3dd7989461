"""`fmplex task set`, `load`, `rollback` and `remove`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_task, write_version
from live_server import FakeServer
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex import ServerProblem, Unreachable
from fmplex.cli import app as cli
from fmplex.cli import changes
from fmplex_backend.repository.writer import ModelRepository

EMBED = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tiny_repository(tmp_path)
    write_task(root, "one", 0, task=EMBED, weight=2.0, slo_ms=50.0, max_queue=9)
    for version in (2, 3):
        write_version(root, "one", version, EMBED)
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer({})
    monkeypatch.setattr(changes, "Client", server.client)
    return server


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["task", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def terms(root: Path) -> tuple[float, float | None, int | None]:
    _, spec = ModelRepository(root).task("one")
    return spec.weight, spec.slo, spec.max_queue


def test_an_objective_is_set_and_cleared(root: Path) -> None:
    assert run("set", "one", "-r", root, "--slo-ms", "25", "--max-queue", "7") == "one: slo_ms 25, max_queue 7\n"
    assert terms(root) == (2.0, 0.025, 7)
    assert run("set", "one", "-r", root, "--slo-ms", "none", "--weight", "3") == "one: weight 3, no slo_ms\n"
    assert terms(root) == (3.0, None, 7)
    said = json.loads(run("set", "one", "-r", root, "--max-queue", "none", "--json"))
    assert said == {"task": "one", "max_queue": None}
    assert terms(root) == (3.0, None, None)


def test_limits_are_set_and_cleared(root: Path) -> None:
    assert run("set", "one", "-r", root, "--max-seconds", "1.5") == "one: max_seconds 1.5\n"
    assert ModelRepository(root).task("one")[1].max_seconds == 1.5
    assert run("set", "one", "-r", root, "--max-seconds", "none") == "one: no max_seconds\n"
    assert ModelRepository(root).task("one")[1].max_seconds is None
    for option, value in (("--max-running", "2"), ("--max-kv-share", "0.5")):
        assert "limits nothing in a task of the family" in run("set", "one", "-r", root, option, value, code=1)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--slo-ms", "soon", "'soon' is neither a number nor 'none'"),
        ("--max-queue", "1.5", "'1.5' is neither a whole number nor 'none'"),
    ],
)
def test_what_is_no_number(root: Path, option: str, value: str, said: str) -> None:
    told = run("set", "one", "-r", root, option, value, code=2)
    assert said in " ".join(told.replace("│", " ").split())


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_numbers_out_of_range(root: Path, value: str) -> None:
    assert "slo_ms is" in run("set", "one", "-r", root, "--slo-ms", value, code=1)
    assert terms(root)[1] == 0.05


def test_back_and_forward_again(root: Path, server: FakeServer) -> None:
    assert run("rollback", "one", "-r", root) == "one: version 2\n"
    assert run("rollback", "one", "-r", root, "--to", "1", "--server", "host") == "one: version 1\n"
    assert run("rollback", "one", "-r", root, "--to", "3", "--server", "host") == "one: version 3\n"
    assert server.calls == [("load", "one")] * 2
    assert "has no version 4, but 1, 2, 3" in run("rollback", "one", "-r", root, "--to", "4", code=1)


@pytest.mark.parametrize(("problem", "code"), [(ServerProblem("'one' is refused: x"), 1), (Unreachable("gone"), 3)])
def test_a_server_that_does_not_follow(root: Path, server: FakeServer, problem: ServerProblem, code: int) -> None:
    server.problem = problem
    told = run("rollback", "one", "-r", root, "--server", "host", code=code)
    assert f"one is at version 2 in {root}, but {problem}" in told


def test_load(server: FakeServer) -> None:
    assert run("load", "one") == "one: loaded\n"
    assert (server.address, server.calls) == ("localhost:8001", [("load", "one")])
    server.problem = ServerProblem("'one' is refused: one/1/decoder.safetensors: cut short")
    assert "cut short" in run("load", "one", code=1)


def test_unloaded_until_it_is_loaded_again(root: Path, server: FakeServer) -> None:
    marker = root / "one" / "UNLOADED"
    assert run("unload", "one", "-r", root) == "one: unloaded\n"
    assert marker.exists()
    assert run("load", "one", "-r", root) == "one: loaded\n"
    assert not marker.exists()
    assert server.calls == [("unload", "one"), ("load", "one")]
    assert "there is no task 'two'" in run("unload", "two", "-r", root, code=1)
    server.problem = Unreachable("gone")
    assert "one is kept unloaded from now on, but gone" in run("unload", "one", "-r", root, code=3)
    assert marker.exists()
    assert "one is kept unloaded no more, but gone" in run("load", "one", "-r", root, code=3)
    assert not marker.exists()


def test_what_a_server_still_has_is_not_removed(root: Path, server: FakeServer) -> None:
    server.problem = Unreachable("gone")
    run("remove", "one", "-r", root, "--server", "host", code=3)
    assert (root / "one").is_dir()
    server.problem = None
    assert run("remove", "one", "-r", root, "--server", "host") == "one: removed\n"
    assert not (root / "one").exists()


def test_the_help_of_remove_says_what_is_lost() -> None:
    told = " ".join(run("remove", "--help").split())
    assert "nothing brings it back" in told
    assert "unload it first" in told
    assert "Also apply it" not in told
