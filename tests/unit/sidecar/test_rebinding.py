"""A rebind on disk and on a server that only remembers: in which order, and undone where something refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_config, write_version
from filelock import FileLock
from live_server import status, task
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import DeadlineExceeded, FmplexError, ServerProblem, TaskProblem
from fmplex_backend.repository.rebinding import Rebinding, Rebound
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.repository.writer import LOCK
from fmplex_backend.status import BackboneStatus
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar import rebinding
from fmplex_controller.sidecar.rebinding import rebind
from testing.repositories import write_backbone


class FakeTriton:
    """Tells `told` of a task, one after the other, and raises `problem` when it is loaded.

    `read` is what it finds before the entry is written, and `reserved` the tag that it keeps then, if any. `loaded` is
    what each load has found in it: backbone and tag.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[str]()
        self.told: list[dict[str, Any] | Exception | None] = [{}]
        self.read: Any = ""
        self.reserved: int | None = None
        self.reserved_s = 5.0
        self.write: Callable[[], object] = lambda: None  # what somebody else does before the entry is written
        self.problem: ServerProblem | None = None
        self.loaded: list[tuple[str, int]] = []

    def status(self, backbone: str, name: str = "", timeout: float = 0) -> BackboneStatus:
        if not name:
            return status(task("a", ahead_s=0.25))
        self.calls.append(f"status {backbone}: {sorted(Repository(self.root, backbone).read())}")
        told = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(told, Exception):
            raise told
        return status(*([] if told is None else [task(name, **told)]))

    def prefetch(self, backbone: str, name: str, timeout: float = 0) -> BackboneStatus:
        self.calls.append(f"prefetch {backbone}: {sorted(Repository(self.root, backbone).read())}")
        with FileLock(self.root / LOCK, timeout=0):  # else others could not write meanwhile
            pass
        if isinstance(self.read, Exception):
            raise self.read
        self.write()
        found = {"prefetched": self.read, "reserved": self.reserved, "reserved_s": self.reserved_s}
        return status().model_copy(update=found)

    def load(self, name: str) -> None:
        self.calls.append(f"load {name}")
        backbone = Rebinding(self.root).backbone_of(name)
        self.loaded.append((backbone, Repository(self.root, backbone).tag(name) or 0))
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
    assert triton.calls == ["prefetch twin: []", "status twin: ['a']", "load a"]
    assert triton.loaded == [("twin", 1)]
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
    assert triton.calls == ["prefetch twin: []", "status twin: ['a']", "load a"]


def test_where_its_tag_is_kept_for_it_the_server_loads_it_at_once(root: Path, journal: Journal) -> None:
    triton: Any = FakeTriton(root)
    triton.reserved = 1
    moved = rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert moved is not None
    assert moved.tag == 1
    assert triton.calls[0] == "prefetch twin: []"
    assert sorted(triton.calls[1:]) == ["load a", "status twin: ['a']"], "in either order"


@pytest.mark.parametrize("what", ["another tag", "too late", "another version", "another entry"])
def test_what_was_not_agreed_is_agreed_before_the_server_loads_it(root: Path, journal: Journal, what: str) -> None:
    triton: Any = FakeTriton(root)
    triton.reserved = 1
    if what == "another tag":
        write_config(root, "b", 1)
        write_version(root, "b", 1, text_task({"kind": "embedding"}))
    elif what == "too late":
        triton.reserved_s = rebinding.CHECK_S
    elif what == "another version":
        written = write_version(root.parent, "written", 2, text_task({"kind": "embedding"}))
        triton.write = lambda: written.rename(root / "a" / "2")  # whole, as the entry is looked at meanwhile
    else:
        triton.write = lambda: write_config(root, "a", 1, weight=2.0)
    assert rebind(root, triton, "a", "twin", journal=journal, why="to see") is not None
    assert triton.calls == ["prefetch twin: []", "status twin: ['a']", "load a"]


@pytest.mark.parametrize(
    ("told_of_it", "problem", "message"),
    [
        ([{"state": "refused", "error": "why"}], None, "the backbone 'twin' refuses 'a': why"),
        ([{"contested": True, "error": "VFM_1 is the tag of p"}], None, "VFM_1 is the tag of p"),
        ([{"attached": False}, {"state": "refused", "error": "why"}], None, "the backbone 'twin' refuses 'a': why"),
        ([None], None, "does not find 'a' in its model repository"),
        ([DeadlineExceeded("no answer")], None, "no answer"),
        ([{}], ServerProblem("it cannot be loaded"), "it cannot be loaded"),
    ],
)
def test_what_is_refused_after_its_tag_was_kept_is_bound_and_loaded_as_it_was(
    root: Path, journal: Journal, told_of_it: Any, problem: ServerProblem | None, message: str
) -> None:
    triton: Any = FakeTriton(root)
    triton.reserved, triton.told, triton.problem = 1, list(told_of_it), problem
    before = (root / "a" / "config.pbtxt").read_text()
    with pytest.raises(FmplexError, match=message):
        rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert (root / "a" / "config.pbtxt").read_text() == before
    assert triton.loaded == [("twin", 1), (BASE, 1)]


def test_it_is_followed_until_the_engine_has_attached_it(root: Path, journal: Journal) -> None:
    triton: Any = FakeTriton(root)
    triton.told = [{"attached": False}, {"attached": False}, {"attached": True}]
    assert rebind(root, triton, "a", "twin", journal=journal, why="to see") is not None
    assert triton.calls == ["prefetch twin: []", "status twin: ['a']", "load a", *["status twin: ['a']"] * 2]


def test_an_engine_that_is_long_at_a_batch_is_no_refusal(
    root: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebinding, "ATTACH_WAIT_S", 0.0)
    triton: Any = FakeTriton(root)
    triton.told = [{"attached": False}]
    assert rebind(root, triton, "a", "twin", journal=journal, why="to see") is not None
    assert triton.calls[-2:] == ["status twin: ['a']", "load a"]


def test_no_answer_once_it_is_loaded_is_no_reason_to_take_it_back(root: Path, journal: Journal) -> None:
    triton: Any = FakeTriton(root)
    triton.told = [{"attached": False}, DeadlineExceeded("busy")]
    assert rebind(root, triton, "a", "twin", journal=journal, why="to see") is not None
    assert triton.loaded == [("twin", 1)]


def test_one_whose_tag_may_be_anothers_there_gets_another_before_it_is_loaded(root: Path, journal: Journal) -> None:
    triton: Any = FakeTriton(root)
    contested = {"contested": True, "error": "VFM_1 is the tag of p"}
    triton.told = [contested, {}]
    moved = rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert moved is not None
    assert moved.tag != 1
    assert triton.loaded == [("twin", moved.tag)]
    rebind(root, triton, "a", BASE, journal=journal, why="back")
    triton.told, triton.loaded = [contested], []
    with pytest.raises(TaskProblem, match="VFM_1 is the tag of p"):
        rebind(root, triton, "a", "twin", journal=journal, why="again")
    assert triton.loaded == []
    assert Repository(root, BASE).tag("a") == moved.tag


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


REFUSED = {"state": "refused", "error": "why"}


@pytest.mark.parametrize(
    ("told_of_it", "problem", "message"),
    [
        ([REFUSED], None, "the backbone 'twin' refuses 'a': why"),
        ([{"attached": False}, REFUSED], None, "the backbone 'twin' refuses 'a': why"),
        ([None], None, "does not find 'a' in its model repository"),
        ([DeadlineExceeded("no answer")], None, "no answer"),
        ([{}], ServerProblem("it cannot be loaded"), "it cannot be loaded"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(
    root: Path,
    journal: Journal,
    told: list[tuple[str, str, str, str]],
    told_of_it: Any,
    problem: ServerProblem | None,
    message: str,
) -> None:
    triton: Any = FakeTriton(root)
    triton.told, triton.problem = list(told_of_it), problem
    was_loaded = problem is not None or len(told_of_it) > 1
    before = (root / "a" / "config.pbtxt").read_text()
    with pytest.raises(FmplexError, match=message):
        rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert sorted(Repository(root, BASE).read()) == ["a"]
    assert (root / "a" / "config.pbtxt").read_text() == before
    # What raises may have been done: the server is told once more. Before that it has the former entry.
    assert triton.loaded == ([("twin", 1), (BASE, 1)] if was_loaded else [])
    ((kind, _, reason, outcome),) = told
    assert (kind, reason) == ("rebound", "to twin: to see")
    assert message in outcome


def test_what_went_wrong_first_is_told_where_it_cannot_be_undone_either(
    root: Path, journal: Journal, told: list[tuple[str, str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def undo(self: Rebinding, rebound: Rebound) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Rebinding, "undo", undo)
    triton: Any = FakeTriton(root)
    triton.told = [REFUSED]
    with pytest.raises(TaskProblem, match=r"refuses 'a': why\. And 'a' could not .* no space left\. Bind it yourself"):
        rebind(root, triton, "a", "twin", journal=journal, why="to see")
    assert "fmplex rebind a base" in told[0][3]
    assert triton.loaded == []
