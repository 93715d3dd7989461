"""Reading a model repository: which ensembles step into a backbone, and what is wrong with the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, edit, write_config, write_task, write_version

from fmplex_backend.repository import BrokenTask, Entry, Repository, TaskSpec


def read(root: Path, name: str = "task") -> Entry | None:
    return Repository(root, BACKBONE).read_task(name)


def spec(root: Path, name: str = "task") -> TaskSpec:
    entry = read(root, name)
    assert isinstance(entry, TaskSpec), entry
    return entry


def broken(root: Path, name: str = "task") -> BrokenTask:
    entry = read(root, name)
    assert isinstance(entry, BrokenTask), entry
    assert entry.error.remedy
    return entry


# -- what is there


def test_a_task(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 3, weight=2.5, slo_ms=50.0, max_queue=7)
    task = spec(tmp_path)
    assert (task.name, task.vfm, task.weight, task.slo, task.max_queue) == ("task", 3, 2.5, 0.05, 7)
    assert (task.version.number, task.version.path) == (1, tmp_path / "task" / "1")
    assert task.config == tmp_path / "task" / "config.pbtxt"
    assert task.outputs == {"EMBEDDING": (-1,), "TRUNCATED": (1,)}


def test_what_is_left_out(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 3)
    file = tmp_path / "task" / "config.pbtxt"
    text = " ".join(file.read_text().split())
    file.write_text(text.replace('parameters { key: "weight" value { string_value: "1" } }', ""))
    assert "weight" not in file.read_text()
    task = spec(tmp_path)
    assert (task.weight, task.slo, task.max_queue) == (1.0, None, None)


def test_all_tasks_of_one_backbone(tmp_path: Path) -> None:
    write_task(tmp_path, "one", 0)
    write_task(tmp_path, "two", 1)
    write_task(tmp_path, "elsewhere", 0, backbone="other")
    (tmp_path / BACKBONE).mkdir()
    (tmp_path / BACKBONE / "config.pbtxt").write_text(f'name: "{BACKBONE}" backend: "fmplex"')
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text(BACKBONE)
    repository = Repository(tmp_path, BACKBONE)
    assert set(repository.read()) == {"one", "two"}
    assert set(repository.read(["two", "elsewhere", "gone"])) == {"two"}
    assert set(Repository(tmp_path, "other").read()) == {"elsewhere"}


def test_a_backbone_whose_name_begins_like_another(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 0, backbone=f"{BACKBONE}2")
    assert read(tmp_path) is None


def test_outputs_go_by_the_backbones_names(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 0, decoder="token-classification", sizes={"SCORES": 5})
    assert spec(tmp_path).outputs["TOKEN_SCORES"] == (-1, 5)


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


# -- versions


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


# -- what is wrong


@pytest.mark.parametrize("key", ["weight", "slo_ms", "max_queue"])
@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e999", "heavy", "3 4"])
def test_a_number_that_is_none(tmp_path: Path, key: str, value: str) -> None:
    write_task(tmp_path, "task", 4, weight=7.0, slo_ms=7.0, max_queue=7)
    file = tmp_path / "task" / "config.pbtxt"
    text = file.read_text()
    start = text.index(f'"{key}"')
    file.write_text(text[:start] + text[start:].replace('"7"', f'"{value}"', 1))
    entry = broken(tmp_path)
    assert (entry.vfm, entry.error.file, entry.error.field) == (4, str(file), f"parameters.{key}")
    assert repr(value) in entry.error.problem


def test_half_a_request(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4, max_queue=7)
    edit(tmp_path / "task" / "config.pbtxt", '"7"', '"7.5"')
    assert "not a whole number" in broken(tmp_path).error.problem


@pytest.mark.parametrize(
    ("new", "count", "vfm"),
    [
        ('key: "EXTRA" value: "usage"', 0, None),
        ('key: "VFM_1" value: "usage" } output_map { key: "VFM_2" value: "usage"', 2, None),
    ],
)
def test_not_exactly_one_tag(tmp_path: Path, new: str, count: int, vfm: int | None) -> None:
    write_task(tmp_path, "task", 4)
    file = tmp_path / "task" / "config.pbtxt"
    text = " ".join(file.read_text().split())
    file.write_text(text.replace('key: "VFM_4" value: "usage"', new))
    entry = broken(tmp_path)
    assert (entry.vfm, entry.error.field) == (vfm, "ensemble_scheduling.step.output_map")
    assert entry.error.problem.startswith(f"{count} tags")


@pytest.mark.parametrize("text", ["name: {", f'name: "{BACKBONE}" unheard_of: 1', f'{BACKBONE} "'])
def test_not_a_configuration(tmp_path: Path, text: str) -> None:
    write_task(tmp_path, "task", 4)
    file = tmp_path / "task" / "config.pbtxt"
    file.write_text(f"{text} # {BACKBONE}")
    entry = broken(tmp_path)
    assert (entry.vfm, entry.error.file) == (None, str(file))
    assert "not a Triton model configuration" in entry.error.problem


def test_not_even_text(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4)
    (tmp_path / "task" / "config.pbtxt").write_bytes(b"\xff\xfe" + BACKBONE.encode())
    assert "not a Triton model configuration" in broken(tmp_path).error.problem


def test_what_vanishes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories come and go under a reader: none of them is a reason to stop."""
    write_task(tmp_path, "task", 4)
    write_task(tmp_path, "other", 5)
    former = Path.iterdir

    def gone(self: Path) -> object:
        if self.name == "task":
            shutil.rmtree(self, ignore_errors=True)
            raise FileNotFoundError(self)
        return former(self)

    monkeypatch.setattr(Path, "iterdir", gone)
    assert "other" in Repository(tmp_path, BACKBONE).read()


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(BACKBONE)
    assert read(tmp_path, "notes.txt") is None
    assert read(tmp_path, "nothing") is None


def test_what_may_not_be_read_is_refused_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, "task", 4)
    write_task(tmp_path, "other", 5)
    former = Path.read_text

    def closed(self: Path, *args: str, **options: str) -> str:
        if self.parent.name == "task":
            raise PermissionError(13, "Permission denied", str(self))
        return former(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", closed)
    assert "Permission denied" in broken(tmp_path).error.problem
    assert isinstance(read(tmp_path, "other"), TaskSpec)


def test_an_entry_that_was_read_once_is_read_again_when_it_changes(tmp_path: Path) -> None:
    repository = Repository(tmp_path, BACKBONE)
    write_task(tmp_path, "task", 4)
    assert [entry.vfm for entry in repository.read().values()] == [4]
    write_config(tmp_path, "task", 5)
    assert [entry.vfm for entry in repository.read().values()] == [5]
    write_config(tmp_path, "task", 5, backbone="other")
    assert repository.read() == {}
    write_config(tmp_path, "task", 5)
    assert [entry.vfm for entry in repository.read().values()] == [5]
