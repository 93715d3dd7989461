"""A group's entry: how it is read, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, edit, write_group

from fmplex_backend.interface import TensorSpec
from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.repository.inspection import inspect
from fmplex_backend.repository.tasks import BrokenTask, Repository


def read(root: Path) -> GroupSpec | BrokenTask:
    entry = Repository(root, BACKBONE).read_task("guard")
    assert isinstance(entry, GroupSpec | BrokenTask), entry
    return entry


def test_a_group(tmp_path: Path) -> None:
    file = write_group(tmp_path, "guard", 9, {"b": 2, "a.b": 5, "a": 3}, slo_ms=50)
    group = read(tmp_path)
    assert isinstance(group, GroupSpec)
    assert (group.name, group.vfm, group.slo, group.inputs, group.config) == ("guard", 9, 0.05, ("TEXT",), file)
    assert [(member.name, member.tag) for member in group.members] == [("b", 2), ("a.b", 5), ("a", 3)]
    assert [member.name for member in group.by_tag] == ["b", "a", "a.b"]
    shown = (
        TensorSpec("EMBEDDING", "TYPE_FP32", (-1,), "EMBEDDING"),
        TensorSpec("TRUNCATED", "TYPE_BOOL", (1,), "TRUNCATED"),
    )
    assert all(sorted(member.outputs, key=lambda each: each.name) == list(shown) for member in group.members)


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        ('"a,b"', '"a,,b"', "parameters.group", "'a,,b' is no list of different tasks"),
        ('"a,b"', '"a,a"', "parameters.group", "'a,a' is no list of different tasks"),
        ('"a,b"', '"a,c"', "output_map", "it has to map a MEMBER_<n> to each of a.usage, c.usage, and no other"),
        ('"a,b"', '"a"', "output_map", "it has to map a MEMBER_<n> to each of a.usage, and no other"),
        ('"MEMBER_2"', '"MEMBER_x"', "output_map", "it has to map a MEMBER_<n> to each of a.usage, b.usage"),
        ('"ERRORS"', '"LABEL"', "output_map", "ERRORS is missing, so that nothing would tell which tasks have failed"),
        ('"VFM_9"', '"VFM_x"', "output_map", "0 tags in its steps into 'base', exactly one is needed"),
        ('"0.EMBEDDING"', '"2.EMBEDDING"', "output_map.2.EMBEDDING", "is shown as 'a.EMBEDDING', but by the order"),
        ('"0.EMBEDDING"', '"EMBEDDING"', "output_map.EMBEDDING", "0.... of a, 1.... of b"),
        ('key: "0.EMBEDDING" value: "a.EMBEDDING"', 'key: "0.EMBEDDING" value: "b.EMBEDDING"', "0.EMBEDDING", "shown"),
        ('"50"', '"soon"', "parameters.slo_ms", "'soon' is not a number above 0"),
    ],
)
def test_what_is_wrong_with_one(tmp_path: Path, old: str, new: str, field: str, problem: str) -> None:
    edit(write_group(tmp_path, "guard", 9, {"a": 1, "b": 2}, slo_ms=50), old, new)
    entry = read(tmp_path)
    assert isinstance(entry, BrokenTask)
    text = str(entry.error)
    assert text.startswith(f"{tmp_path}/guard/config.pbtxt: ")
    assert field in entry.error.field
    assert problem in text
    assert entry.error.remedy
    assert entry.vfm == (None if "VFM_x" in new else 9)


def test_one_with_several_steps(tmp_path: Path) -> None:
    file = write_group(tmp_path, "guard", 9, {"a": 1})
    edit(file, "step [", 'step [ { model_name: "other" model_version: -1 }, ')
    entry = read(tmp_path)
    assert isinstance(entry, BrokenTask)
    assert "2 steps, a group has one. Write it anew: fmplex group create guard a --replace" in str(entry.error)


def test_a_controller_takes_it_for_a_task(tmp_path: Path) -> None:
    """What is on a backbone, has a tag and may be completed and quarantined."""
    file = write_group(tmp_path, "guard", 9, {"a": 1, "b": 2})
    found = inspect(tmp_path, "guard")
    assert (found.kind, found.backbone, found.tag, found.lack, found.problem) == ("task", BACKBONE, 9, None, "")
    edit(file, 'output_map { key: "VFM_9" value: "usage" }', "")
    assert inspect(tmp_path, "guard").lack == "tag"
    edit(file, 'name: "guard"', 'name: "other"')
    assert inspect(tmp_path, "guard").lack == "name"


def test_a_controller_quarantines_one_that_is_wrong(tmp_path: Path) -> None:
    edit(write_group(tmp_path, "guard", 9, {"a": 1}), '"ERRORS"', '"LABEL"')
    assert "ERRORS is missing" in inspect(tmp_path, "guard").problem
