"""`fmplex task canary`, `shadow` and `promote`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_task, write_version
from live_server import FakeServer
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex import ServerProblem
from fmplex.cli import app as cli
from fmplex.cli import rollout
from fmplex_backend.repository.configs import read_config

EMBED = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tiny_repository(tmp_path)
    write_task(root, "one", 0, task=EMBED)
    write_version(root, "one", 2, EMBED)
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer({})
    monkeypatch.setattr(rollout, "Client", server.client)
    return server


def run(*arguments: Any, code: int = 0) -> str:
    found = CliRunner().invoke(cli.app, ["task", *map(str, arguments)])
    assert found.exit_code == code, found.output
    return found.output


def parameters(root: Path) -> dict[str, str]:
    proto = read_config(root / "one" / "config.pbtxt")
    return {key: value.string_value for key, value in proto.parameters.items() if "_" in key}


def test_a_canary_from_the_first_percent_to_the_end(root: Path, server: FakeServer) -> None:
    assert run("canary", "one", "--version", 2, "-r", root) == "one: version 2 answers 5%, version 1 the rest\n"
    assert parameters(root) == {"canary_version": "2", "canary_share": "0.05"}
    told = run("canary", "one", "--share", "0.125", "-r", root, "--server", "host", "--json")
    assert json.loads(told) == {"task": "one", "canary": 2, "version": 1, "share": 0.125}
    assert server.calls == [("load", "one")]
    assert run("promote", "one", "-r", root) == "one: version 2\n"
    assert parameters(root) == {}


def test_a_shadow_and_back(root: Path, server: FakeServer) -> None:
    assert run("shadow", "one", "-r", root) == "one: version 2 shadows version 1\n"
    assert parameters(root) == {"shadow_version": "2", "shadow_tolerance": "0.01"}
    assert run("rollback", "one", "-r", root) == "one: version 1\n"
    assert parameters(root) == {}
    run("shadow", "one", "--tolerance", 0.2, "-r", root)
    assert run("shadow", "one", "--stop", "-r", root) == "one: no shadow\n"
    run("canary", "one", "-r", root)
    assert json.loads(run("canary", "one", "--stop", "-r", root, "--json")) == {"task": "one", "canary": None}


@pytest.mark.parametrize("share", ["5", "0", "100%", "a", "-5%", "nan", ""])
def test_a_share_that_is_none(root: Path, share: str) -> None:
    told = run("canary", "one", f"--share={share}", "-r", root, code=2)
    assert "write e.g. 5% or 0.05" in " ".join(told.replace("│", " ").split())
    assert parameters(root) == {}


def test_problems_say_what_to_do(root: Path, server: FakeServer) -> None:
    assert "has no version 7, but 1, 2" in run("canary", "one", "--version", 7, "-r", root, code=1)
    assert "has no canary" in run("canary", "one", "--stop", "-r", root, code=1)
    assert "neither a canary nor a shadow, and no version after 2" in run("promote", "one", "-r", root, code=1)
    server.problem = ServerProblem("'one' is refused: x")
    told = run("canary", "one", "-r", root, "--server", "host", code=1)
    assert "one: version 2 answers 5%, version 1 the rest, as its entry says, but 'one' is refused: x" in told
