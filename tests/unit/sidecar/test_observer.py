"""What is seen of a repository while its directories change, are closed, or are away."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from backend_fixtures import edit, text_task, write_config, write_version
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import TaskProblem
from fmplex_controller.sidecar import observer as observer_module
from fmplex_controller.sidecar.observer import Observer
from fmplex_controller.sidecar.reconcile import BAD_S


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tiny_repository(tmp_path, slots=8)
    write_config(root, "a", 1)
    write_version(root, "a", 1, text_task({"kind": "embedding"}))
    return root


def close(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a directory be another user's alone: root, as whom tests may run, reads everything."""
    fingerprint, exists = observer_module.fingerprint, Path.exists

    def refused(path: Path) -> bool:
        if directory in (path, *path.parents):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return False

    monkeypatch.setattr(observer_module, "fingerprint", lambda path: refused(path) or fingerprint(path))
    monkeypatch.setattr(Path, "exists", lambda path: refused(path) or exists(path))


def test_a_directory_that_is_closed_says_so_and_stops_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Observer(root)
    observer.observe(0.0)
    (root / "b").mkdir()
    with monkeypatch.context() as patched:
        for name in "ab":
            close(root / name, patched)
        observer.changed(None)
        observer.observe(1.0)
        observer.changed(None)
        found = observer.observe(1.0 + BAD_S)
        assert found[BASE].still_s == 1.0 + BAD_S
        assert not found[BASE].inspected.problem
        for name, kind in (("a", "task"), ("b", "model")):
            assert (found[name].still_s, found[name].inspected.kind) == (BAD_S, kind)
            assert f"{root / name}: (directory): it cannot be read: Permission denied." in found[name].inspected.problem
    observer.changed(None)
    assert not observer.observe(10.0)["a"].inspected.problem


def test_a_change_that_is_told_while_the_repository_is_away_is_seen_later(root: Path) -> None:
    observer = Observer(root)
    observer.observe(0.0)
    before = observer.observe(BAD_S)["a"].fingerprint
    assert observer.observe(BAD_S + 1)["a"].still_s == BAD_S + 1
    edit(root / "a" / "config.pbtxt", "VFM_1", "VFM_2")
    observer.changed({"a"})
    root.rename(root.with_name("away"))
    with pytest.raises(TaskProblem, match="there is no model repository"):
        observer.observe(BAD_S + 2)
    root.with_name("away").rename(root)
    now = observer.observe(BAD_S + 3)["a"]
    assert (now.fingerprint != before, now.inspected.tag) == (True, 2)
