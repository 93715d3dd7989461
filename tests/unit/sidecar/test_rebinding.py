"""A rebind on disk and on a server that only remembers: in which order, and undone where something refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_config, write_version
from live_server import status, task
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import DeadlineExceeded, FmplexError, ServerProblem
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.status import BackboneStatus
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.rebinding import rebind
from testing.repositories import write_backbone


class FakeTriton:
    """Tells `told` of a task, and raises `problem` when it is loaded; `read` is what it finds before that."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[str]()
        self.told: Any = "serving"
        self.read: Any = ""
        self.problem: ServerProblem | None = None

    def status(self, backbone: str, name: str = "", timeout: float = 0) -> BackboneStatus:
        if not name:
            return status(task("a", ahead_s=0.25))
        self.calls.append(f"status {backbone}: {sorted(Repository(self.root, backbone).read())}")
        if isinstance(self.told, Exception):
            raise self.told
        return status(*([task(name, state=self.told, error="why")] if self.told else []))

    def prefetch(self, backbone: str, name: str, timeout: float = 0) -> str | None:
        self.calls.append(f"prefetch {backbone}: {sorted(Repository(self.root, backbone).read())}")
        if isinstance(self.read, Exception):
            raise self.read
        assert self.read is None or isinstance(self.read, str)
        return self.read

    def load(self, name: str) -> None:
        self.calls.append(f"load {name}")
        if self.problem is not None:
            raise self.problem


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tiny_repository(tmp_path, slots=8)
    write_backbone(found, "twin", model=str(tmp_path / "model"), threads="1", vfm_slots="8")
    write_config(found, "a", 1)
    write_version(found, "a", 1, text_task({"kind": "embedding"}))
    return found


@pytest.fixture
def told() -> list[tuple[str, str, str, str]]:
    """What the journal was told: kind, model, reason, outcome."""
    return []


@pytest.fixture
def journal(told: list[tuple[str, str, str, str]]) -> Journal:
    found = Journal()
    found.listeners.append(lambda event: told.append((event.kind, event.model, event.reason, event.outcome)))
    return found


def test_the_backbone_has_read_the_task_before_the_server_loads_it(
    root: Path, journal: Journal, told: list[tuple[str, str, str, str]]
) -> None:
    triton: Any = FakeTriton(root)
    moved = rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert moved is not None
    assert (moved.task, moved.former, moved.backbone, moved.tag) == ("a", BASE, "twin", 1)
    assert triton.calls == ["prefetch twin: []", "load a", "status twin: ['a']"]
    entry = Repository(root, "twin").read_task("a")
    assert isinstance(entry, TaskSpec)
    assert entry.ahead_s == 0.25, "what it had beyond its share goes along"
    assert rebind(root, triton, "a", "twin", journal=journal, why="again") is None
    ((kind, model, reason, outcome),) = told
    assert (kind, model, outcome) == ("rebound", "a", "done")
    assert re.fullmatch(rf"from {BASE} to twin, in force after \d+ ms: to see", reason)


def test_an_older_backbone_has_the_task_before_the_server_loads_it(root: Path, journal: Journal) -> None:
    triton: Any = FakeTriton(root)
    triton.read = None
    assert rebind(root, triton, "a", "twin", journal=journal, why="to see") is not None
    assert triton.calls[:3] == ["prefetch twin: []", "status twin: ['a']", "load a"]


@pytest.mark.parametrize(
    ("read", "message"), [("its head is torn", "refuses 'a': its head is torn"), (DeadlineExceeded("late"), "late")]
)
def test_what_cannot_be_read_is_not_written(root: Path, journal: Journal, read: Any, message: str) -> None:
    triton: Any = FakeTriton(root)
    triton.read = read
    before = (root / "a" / "config.pbtxt").stat()
    with pytest.raises(FmplexError, match=message):
        rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert (root / "a" / "config.pbtxt").stat() == before
    assert triton.calls == ["prefetch twin: []"]


@pytest.mark.parametrize(
    ("state", "problem", "message"),
    [
        ("refused", None, "the backbone 'twin' refuses 'a': why"),
        ("", None, "does not find 'a' in its model repository"),
        (DeadlineExceeded("no answer"), None, "no answer"),
        ("serving", ServerProblem("it cannot be loaded"), "it cannot be loaded"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(
    root: Path,
    journal: Journal,
    told: list[tuple[str, str, str, str]],
    state: Any,
    problem: ServerProblem | None,
    message: str,
) -> None:
    triton: Any = FakeTriton(root)
    triton.told, triton.problem = state, problem
    before = (root / "a" / "config.pbtxt").read_text()
    with pytest.raises(FmplexError, match=message):
        rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert sorted(Repository(root, BASE).read()) == ["a"]
    assert (root / "a" / "config.pbtxt").read_text() == before
    assert triton.calls.count("load a") == (1 if problem else 2), "what the server has loaded is the former entry"
    ((kind, _, reason, outcome),) = told
    assert (kind, reason) == ("rebound", "to twin: to see")
    assert message in outcome
