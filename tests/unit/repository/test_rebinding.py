"""A task's entry is written for another backbone of its model, or nothing is."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from backend_fixtures import text_task, write_config, write_version
from google.protobuf import text_format
from model_fixtures import save_tiny
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import tag_name
from fmplex_backend.repository import terms
from fmplex_backend.repository.configs import Terms, read_config, tags_of
from fmplex_backend.repository.rebinding import Rebinding
from fmplex_backend.repository.tasks import Repository, TaskSpec
from testing.repositories import write_backbone

EMBEDDING = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two backbones of one model, and the task `a`."""
    found = tiny_repository(tmp_path, slots=8)
    write_backbone(found, "twin", model=str(tmp_path / "model"), threads="1", vfm_slots="8")
    write_task(found, "a", 1, weight=3.0)
    return found


def write_task(root: Path, name: str, tag: int, backbone: str = BASE, **terms: float) -> None:
    write_config(root, name, tag, backbone=backbone, **terms)
    write_version(root, name, 1, EMBEDDING)


def test_it_keeps_its_tag_and_everything_else(root: Path) -> None:
    before = read_config(root / "a" / "config.pbtxt")
    rebound = Rebinding(root).rebind("a", "twin")
    assert rebound is not None
    assert (rebound.former, rebound.backbone, rebound.tag) == (BASE, "twin", 1)
    assert Repository(root, BASE).read_task("a") is None
    entry = Repository(root, "twin").read_task("a")
    assert isinstance(entry, TaskSpec)
    assert (entry.vfm, entry.weight) == (1, 3.0)
    after = read_config(root / "a" / "config.pbtxt")
    after.ensemble_scheduling.step[0].model_name = BASE
    assert after.parameters.pop(terms.REBOUND_AT).string_value == rebound.at
    assert after == before


def test_what_it_had_beyond_its_share_goes_along_for_a_while(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    Rebinding(root).rebind("a", "twin", 0.25)

    def begins_with() -> float:
        entry = Repository(root, "twin").read_task("a")
        assert isinstance(entry, TaskSpec)
        return entry.ahead_s

    assert begins_with() == 0.25
    now += terms.AHEAD_S + 1
    assert begins_with() == 0.0
    Rebinding(root).rebind("a", BASE)
    assert terms.AHEAD not in read_config(root / "a" / "config.pbtxt").parameters


@pytest.mark.parametrize("seconds", [1e-9, 4.9e-7, 9.9e-7, 1e-6])
def test_next_to_nothing_beyond_its_share_does_not_break_it(root: Path, seconds: float) -> None:
    Rebinding(root).rebind("a", "twin", seconds)
    entry = Repository(root, "twin").read_task("a")
    assert isinstance(entry, TaskSpec), entry
    assert entry.ahead_s == (seconds if seconds == 1e-6 else 0.0)
    assert (terms.AHEAD in read_config(root / "a" / "config.pbtxt").parameters) == (seconds == 1e-6)


@pytest.mark.parametrize(
    ("ahead", "at"),
    [("0.000000", 0), ("-1", 0), ("nan", 0), ("inf", 0), ("much", 0), ("0.25", "inf"), ("0.25", "soon"), ("", 0)],
)
def test_a_hint_that_cannot_be_read_is_none(root: Path, ahead: str, at: str | int) -> None:
    hints = {terms.AHEAD: ahead, terms.REBOUND_AT: str(at or time.time())}
    write_config(root, "a", 1, parameters=hints)
    entry = Repository(root, BASE).read_task("a")
    assert isinstance(entry, TaskSpec), entry
    assert entry.ahead_s == 0.0


def test_a_tag_that_is_taken_is_replaced_by_one_that_no_backbone_has(root: Path) -> None:
    write_task(root, "b", 1, "twin")
    write_task(root, "c", 5)
    rebound = Rebinding(root).rebind("a", "twin")
    assert rebound is not None
    assert rebound.tag not in (1, 5)
    assert tags_of(root / "a" / "config.pbtxt", "twin") == [rebound.tag]


def test_a_tag_that_a_task_has_elsewhere_is_replaced_as_that_task_may_have_left(root: Path) -> None:
    """While the server has it loaded, the backbone that it left cannot tell whose requests come with the tag."""
    write_task(root, "b", 1, "twin")
    write_backbone(root, "third", model=str(root.parent / "model"), threads="1", vfm_slots="8")
    rebound = Rebinding(root).rebind("a", "third")
    assert rebound is not None
    assert rebound.tag != 1
    write_task(root, "c", 10, BASE)
    write_task(root, "d", 0, "twin")
    kept = Rebinding(root).rebind("d", "third")
    assert kept is not None
    assert kept.tag == 0, "VFM_10 is another one"


def test_another_tag_once_it_is_rebound_and_undone_from_there(root: Path) -> None:
    before = read_config(root / "a" / "config.pbtxt")
    repository = Rebinding(root)
    first = repository.rebind("a", "twin")
    assert first is not None
    second = repository.retag(first)
    assert second is not None
    assert second.tag != first.tag
    assert tags_of(root / "a" / "config.pbtxt", "twin") == [second.tag]
    repository.undo(first)
    assert Repository(root, BASE).read_task("a") is None, "it is not what was written last"
    repository.undo(second)
    assert read_config(root / "a" / "config.pbtxt") == before
    assert repository.retag(second) is None


def test_what_was_bound_anew_to_the_same_place_is_not_undone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(1000)
    monkeypatch.setattr("time.time", lambda: next(times))
    repository = Rebinding(root)
    first = repository.rebind("a", "twin")
    assert first is not None
    repository.rebind("a", BASE)
    again = repository.rebind("a", "twin")
    assert again is not None
    assert (again.backbone, again.tag) == (first.backbone, first.tag)
    repository.undo(first)
    assert Repository(root, "twin").tag("a") == again.tag
    repository.undo(again)
    assert Repository(root, BASE).tag("a") == 1


def test_nothing_is_written_where_it_is_there_already(root: Path) -> None:
    written = (root / "a" / "config.pbtxt").stat().st_mtime_ns
    assert Rebinding(root).rebind("a", BASE) is None
    assert (root / "a" / "config.pbtxt").stat().st_mtime_ns == written


def test_undone_it_is_as_before_unless_somebody_has_changed_it(root: Path) -> None:
    before = read_config(root / "a" / "config.pbtxt")
    repository = Rebinding(root)
    rebound = repository.rebind("a", "twin")
    assert rebound is not None
    repository.undo(rebound)
    assert read_config(root / "a" / "config.pbtxt") == before
    rebound = repository.rebind("a", "twin")
    assert rebound is not None
    write_config(root, "a", 7, backbone="twin")
    repository.undo(rebound)
    assert tags_of(root / "a" / "config.pbtxt", "twin") == [7]


def test_undone_what_somebody_has_edited_meanwhile_stays(root: Path) -> None:
    write_task(root, "b", 1, "twin")
    before = read_config(root / "a" / "config.pbtxt")
    repository = Rebinding(root)
    rebound = repository.rebind("a", "twin", 0.25)
    assert rebound is not None
    assert rebound.tag != 1
    repository.set("a", Terms(weight=7.0, slo_ms=20.0))
    repository.undo(rebound)
    entry = Repository(root, BASE).read_task("a")
    assert isinstance(entry, TaskSpec)
    assert (entry.vfm, entry.weight, entry.slo) == (1, 7.0, 0.02)
    after = read_config(root / "a" / "config.pbtxt")
    for key in ("weight", "slo_ms"):
        before.parameters.pop(key, None)
        after.parameters.pop(key, None)
    assert after == before


def test_undone_an_entry_with_several_tags_is_as_before(root: Path) -> None:
    file = root / "a" / "config.pbtxt"
    before = read_config(file)
    (step,) = before.ensemble_scheduling.step
    step.output_map[tag_name(2)] = "another"
    file.write_text(text_format.MessageToString(before))
    repository = Rebinding(root)
    rebound = repository.rebind("a", "twin")
    assert rebound is not None
    assert tags_of(file, "twin") == [rebound.tag]
    repository.undo(rebound)
    assert read_config(file) == before


@pytest.mark.parametrize(
    ("task", "backbone", "problem"),
    [
        ("a", "nothing", "there is no backbone 'nothing'"),
        ("nothing", "twin", "there is no task 'nothing'"),
        ("a", "other", "does not say which model it was trained for; it is on 'base'"),
        ("trained", "other", "'trained' was trained for"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    root: Path, tmp_path: Path, task: str, backbone: str, problem: str
) -> None:
    other = save_tiny(tmp_path / "other", "roberta")
    write_backbone(root, "other", model=str(other), threads="1", vfm_slots="8")
    write_config(root, "trained", 2)
    write_version(root, "trained", 1, text_task({"kind": "embedding"}, backbone={"model": str(tmp_path / "model")}))
    before = (root / "a" / "config.pbtxt").read_bytes()
    with pytest.raises(TaskProblem, match=problem):
        Rebinding(root).rebind(task, backbone)
    assert (root / "a" / "config.pbtxt").read_bytes() == before


@pytest.mark.parametrize("change", ["nothing", "its entry", "its version", "a new version"])
def test_what_was_written_since_it_was_seen_is_told(root: Path, change: str) -> None:
    repository = Rebinding(root)
    seen = repository.seen("a")
    assert (seen.backbone, seen.version.number) == (BASE, 1)
    if change == "its entry":
        write_config(root, "a", 1, weight=3.0)
    elif change == "its version":
        (root / "a" / "1" / "notes.txt").write_text("of its training")
    elif change == "a new version":
        write_version(root, "a", 2, EMBEDDING)
    rebound = repository.rebind("a", "twin", seen=seen)
    assert rebound is not None
    assert rebound.as_seen == (change == "nothing")


def test_nothing_is_as_it_was_seen_where_nobody_has_looked(root: Path) -> None:
    rebound = Rebinding(root).rebind("a", "twin")
    assert rebound is not None
    assert not rebound.as_seen


def test_what_is_bound_to_no_backbone_cannot_be_seen(root: Path) -> None:
    with pytest.raises(TaskProblem, match="nothing"):
        Rebinding(root).seen("nothing")
