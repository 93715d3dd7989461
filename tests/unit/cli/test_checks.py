"""`fmplex task check`: what the loader refuses is refused, of one task or of all, in a repository or outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import edit, text_task, write_task
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex import Backbone
from fmplex.cli import app as cli

EMBED = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tiny_repository(tmp_path, slots=4)
    for tag, name in enumerate(("one", "two")):
        write_task(root, name, tag, task=EMBED, sizes={"EMBEDDING": 32})
    return root


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["task", "check", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout


def error(*arguments: Any) -> str:
    return str(json.loads(run(*arguments, "--json", code=1))["error"])


def test_a_tag_that_is_taken_or_does_not_exist(root: Path) -> None:
    shutil.copytree(root / "one", root / "copy")
    assert "copy/config.pbtxt: name: it is 'one'" in error(root / "copy")
    edit(root / "copy" / "config.pbtxt", 'name: "one"', 'name: "copy"')
    assert run(root / "one") == f"{root / 'one'}: ok\n", "the older keeps it"
    assert "VFM_0 is the tag of 'one' in the repository too" in error(root / "copy")
    edit(root / "copy" / "config.pbtxt", "VFM_0", "VFM_4")
    assert "VFM_4 is beyond the backbone's vfm_slots of 4" in error(root / "copy")
    assert run(root / "one") == f"{root / 'one'}: ok\n"


def test_an_entry_that_does_not_fit_its_version(root: Path) -> None:
    edit(root / "two" / "config.pbtxt", "dims: 32", "dims: 33")
    assert "output.EMBEDDING.dims: the last is 33, the decoder makes 32" in error(root / "two")


def test_a_directory_that_is_in_no_repository(root: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside" / "three"
    shutil.copytree(root / "one", aside)
    edit(aside / "config.pbtxt", 'name: "one"', 'name: "three"')
    assert "there is no backbone 'base'" in error(aside)
    assert "VFM_0 is the tag of 'one' in the repository too" in error(aside, "--repository", root)
    edit(aside / "config.pbtxt", "VFM_0", "VFM_2")
    assert run(aside, "--repository", root) == f"{aside}: ok\n"


def test_all_of_them(root: Path) -> None:
    assert run("-r", root) == "one: ok\ntwo: ok\n"
    write_task(root, "torn", 2, task=EMBED)
    (root / "torn" / "1" / "task.json").write_text("{")
    write_task(root, "orphan", 3, backbone="elsewhere", task=EMBED)
    lines = run("-r", root, code=1).splitlines()
    assert lines[0] == "one: ok"
    assert lines[1].startswith("orphan: ")
    assert "there is no backbone 'elsewhere'" in lines[1]
    assert "torn/1/task.json: (whole file): not readable as JSON" in lines[2]
    found = json.loads(run("-r", root, "--json", code=1))
    assert [(each["task"], each["ok"]) for each in found] == [
        ("one", True),
        ("orphan", False),
        ("torn", False),
        ("two", True),
    ]
    assert found[0]["error"] is None


def test_a_file_that_may_be_a_tasks_is_bad(root: Path) -> None:
    (root / "two" / "config.pbtxt").write_bytes(b"\xff\xfe")
    one, two = run("-r", root, code=1).splitlines()
    assert one == "one: ok"
    assert two.startswith("two: ")
    assert two.endswith("Write it again")
    assert "is not UTF-8" in two


def test_a_task_that_raises_when_it_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replies(*arguments: Any) -> None:
        raise RuntimeError("no such head")

    monkeypatch.setattr(Backbone, "replies", replies)
    assert "one/1: (whole version): trying it once raised RuntimeError: no such head" in error(root / "one")


def test_a_version_finds_its_backbone_by_its_task(root: Path, tmp_path: Path) -> None:
    assert run(root / "one" / "1") == f"{root / 'one' / '1'}: ok\n"
    alone = tmp_path / "aside" / "7"
    shutil.copytree(root / "one" / "1", alone)
    assert "does not say which backbone it is for. Name it with --backbone" in error(alone)
    assert run(alone, "--backbone", "base", "-r", root) == f"{alone}: ok\n"


@pytest.mark.parametrize("directory", ["nothing", "."])
def test_what_is_no_task(root: Path, directory: str) -> None:
    assert "no directory" in error(root / directory) or "is no task" in error(root / directory)
