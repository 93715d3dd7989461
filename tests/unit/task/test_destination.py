"""Where a task is to be saved and served, checked before it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_server import FakeServer, status, task

from fmplex import ControlClosed, DeadlineExceeded, ServerProblem, TaskProblem, Unreachable
from fmplex.task import destination
from fmplex.task.destination import check_destination
from fmplex_backend.repository.configs import Terms


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """One that serves the repository's backbone, and a task on it."""
    server = FakeServer({"base": status(task("one"))})
    monkeypatch.setattr(destination, "Client", server.client)
    return server


def check(root: Path) -> None:
    check_destination("spam", "base", root, Terms(), "host:1")


def test_a_server_on_this_repository_will_do(root: Path, server: FakeServer) -> None:
    check(root)
    assert server.address == "host:1"


def test_a_server_on_another_repository_will_not(root: Path, server: FakeServer) -> None:
    server.backbones = {"other": status(task("one", backbone="other"))}
    with pytest.raises(TaskProblem, match="has no backbone 'base', but other"):
        check(root)


@pytest.mark.parametrize("kind", [ControlClosed, DeadlineExceeded, Unreachable])
def test_what_would_keep_it_from_being_loaded_is_raised(
    root: Path, server: FakeServer, kind: type[ServerProblem]
) -> None:
    server.problem = kind("it is so")
    with pytest.raises(kind, match="it is so"):
        check(root)


def test_a_server_that_cannot_list_its_models_will_do(root: Path, server: FakeServer) -> None:
    """Whatever its words are: a link that leads nowhere may have any name."""
    server.problem = ServerProblem("failed to stat file /models/control key")
    check(root)
