"""Which version of a task is served, and how a change of its files is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, edit, write_config, write_task, write_version

from fmplex_backend.repository.tasks import BrokenTask, Repository, TaskSpec
from fmplex_backend.repository.versions import MOST_FILES


def spec(root: Path) -> TaskSpec:
    entry = Repository(root, BACKBONE).read_task("task")
    assert isinstance(entry, TaskSpec), entry
    return entry


def broken(root: Path) -> BrokenTask:
    entry = Repository(root, BACKBONE).read_task("task")
    assert isinstance(entry, BrokenTask), entry
    assert entry.error.remedy
    return entry


def test_a_signature_changes_with_the_files(tmp_path: Path) -> None:
    path = write_task(tmp_path, "task", 0)
    seen = {spec(tmp_path).version.signature}
    (path / "adapter").mkdir()
    seen.add(spec(tmp_path).version.signature)
    (path / "adapter" / "weights").write_text("1")
    seen.add(spec(tmp_path).version.signature)
    (path / "task.json").write_text("{}  ")
    seen.add(spec(tmp_path).version.signature)
    assert len(seen) == 4
    assert spec(tmp_path).version.intact()
    assert spec(tmp_path).version.signature in seen


def test_intact(tmp_path: Path) -> None:
    path = write_task(tmp_path, "task", 0)
    version = spec(tmp_path).version
    assert version.intact()
    (path / "task.json").write_text("other")
    assert not version.intact()
    shutil.rmtree(path)
    assert not version.intact()


def test_the_highest_version_is_served_as_a_number(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 0, version=9)
    write_version(tmp_path, "task", 10, {})
    write_version(tmp_path, "task", 2, {})
    for name in ("latest", "11.tmp", ".12", "²", "१३"):
        (tmp_path / "task" / name).mkdir()
    (tmp_path / "task" / "99").write_text("a file")
    assert spec(tmp_path).version.number == 10


@pytest.mark.parametrize(
    ("policy", "number"),
    [
        ("version_policy { latest { num_versions: 1 } }", 3),
        ("version_policy { latest { } }", 3),
        ("version_policy { specific { versions: [ 2 ] } }", 2),
    ],
)
def test_policies_that_leave_one(tmp_path: Path, policy: str, number: int) -> None:
    write_task(tmp_path, "task", 0, version=2)
    write_version(tmp_path, "task", 3, {})
    edit(tmp_path / "task" / "config.pbtxt", 'platform: "ensemble"', f'platform: "ensemble" {policy}')
    assert spec(tmp_path).version.number == number


@pytest.mark.parametrize(
    "policy",
    [
        "version_policy { all { } }",
        "version_policy { latest { num_versions: 2 } }",
        "version_policy { specific { versions: [ 1, 2 ] } }",
    ],
)
def test_policies_that_leave_several(tmp_path: Path, policy: str) -> None:
    write_task(tmp_path, "task", 0)
    edit(tmp_path / "task" / "config.pbtxt", 'platform: "ensemble"', f'platform: "ensemble" {policy}')
    error = broken(tmp_path).error
    assert (error.file, error.field) == (str(tmp_path / "task" / "config.pbtxt"), "version_policy")


@pytest.mark.parametrize("policy", ["", "version_policy { specific { versions: [ 4 ] } }"])
def test_a_version_that_is_not_there(tmp_path: Path, policy: str) -> None:
    write_config(tmp_path, "task", 5)
    if policy:
        write_version(tmp_path, "task", 1, {})
        edit(tmp_path / "task" / "config.pbtxt", 'platform: "ensemble"', f'platform: "ensemble" {policy}')
    entry = broken(tmp_path)
    assert entry.vfm == 5
    assert entry.error.file == str(tmp_path / "task" / ("4" if policy else "1"))


def test_a_tree_deeper_than_a_path_can_name(tmp_path: Path) -> None:
    path = write_task(tmp_path, "task", 4)
    name = "d" * 200
    at = os.open(path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert ("task.json", 11) in [(file, size) for file, _, size in spec(tmp_path).version.signature]


def test_a_version_of_too_many_files_is_refused(tmp_path: Path) -> None:
    path = write_task(tmp_path, "task", 4)
    for number in range(MOST_FILES):
        (path / f"file{number}").touch()
    error = broken(tmp_path).error
    assert error.file == str(path)
    assert "more than 1000 files" in error.problem
    (path / "file0").unlink()
    assert spec(tmp_path).version.number == 1


@pytest.mark.parametrize("version", [str(2**63), "9" * 200, "01", "²", "1.bak"])
def test_what_triton_cannot_count_is_no_version(tmp_path: Path, version: str) -> None:
    write_task(tmp_path, "task", 4)
    (tmp_path / "task" / version).mkdir()
    assert spec(tmp_path).version.number == 1


def test_the_largest_version(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4, version=2**63 - 1)
    assert spec(tmp_path).version.number == 2**63 - 1
