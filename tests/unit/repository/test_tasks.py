"""Reading a model repository: which ensembles step into a backbone, and what is wrong with the others."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import BACKBONE, edit, write_config, write_task

from fmplex_backend.printable import printable
from fmplex_backend.repository import tasks
from fmplex_backend.repository.tasks import BrokenTask, Entry, Repository, TaskSpec


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
    write_task(tmp_path, "task", 3, weight=2.5, slo_ms=50.0, max_queue=7, max_queue_bytes=1000, max_seconds=1.5)
    task = spec(tmp_path)
    assert (task.name, task.vfm, task.weight, task.slo, task.max_queue) == ("task", 3, 2.5, 0.05, 7)
    assert (task.slo_ms, task.max_queue_bytes, task.max_seconds) == (50.0, 1000, 1.5)
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
    assert (task.weight, task.slo, task.max_queue, task.max_queue_bytes) == (1.0, None, None, None)
    assert (task.max_seconds, task.max_running, task.max_kv_share) == (None, None, None)


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


# -- what is wrong


@pytest.mark.parametrize("key", ["weight", "slo_ms", "max_queue", "max_queue_bytes", "max_seconds"])
@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e999", "heavy", "3 4"])
def test_a_number_that_is_none(tmp_path: Path, key: str, value: str) -> None:
    write_task(tmp_path, "task", 4, weight=7.0, slo_ms=7.0, max_queue=7, max_queue_bytes=7, max_seconds=7.0)
    file = tmp_path / "task" / "config.pbtxt"
    text = file.read_text()
    start = text.index(f'"{key}"')
    file.write_text(text[:start] + text[start:].replace('"7"', f'"{value}"', 1))
    entry = broken(tmp_path)
    assert (entry.vfm, entry.error.file, entry.error.field) == (4, str(file), f"parameters.{key}")
    assert repr(value) in entry.error.problem


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("max_kv_share", "1.5", "is more than 1"),
        ("max_running", "2.5", "whole number"),
        ("max_running", "0", "above 0"),
    ],
)
def test_a_limit_that_is_none(tmp_path: Path, key: str, value: str, problem: str) -> None:
    write_task(tmp_path, "task", 4)
    file = tmp_path / "task" / "config.pbtxt"
    file.write_text(file.read_text() + f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
    entry = broken(tmp_path)
    assert entry.error.field == f"parameters.{key}"
    assert problem in entry.error.problem


@pytest.mark.parametrize("value", ["", "True", "1", "yes"])
def test_a_cache_that_is_neither_true_nor_false(tmp_path: Path, value: str) -> None:
    write_task(tmp_path, "task", 4, cache=True)
    file = tmp_path / "task" / "config.pbtxt"
    file.write_text(file.read_text().replace('"true"', f'"{value}"'))
    entry = broken(tmp_path)
    assert (entry.vfm, entry.error.field) == (4, "parameters.cache")
    assert repr(value) in entry.error.problem


@pytest.mark.parametrize("weight", ["0.0009", "1000.1", "1e-18", "1e300"])
def test_a_weight_beyond_the_limits(tmp_path: Path, weight: str) -> None:
    write_task(tmp_path, "task", 4, weight=7.0)
    edit(tmp_path / "task" / "config.pbtxt", '"7"', f'"{weight}"')
    entry = broken(tmp_path)
    assert (entry.vfm, entry.error.field) == (4, "parameters.weight")
    assert entry.error.problem == f"{weight!r} is not a number from 0.001 to 1000"


@pytest.mark.parametrize("weight", [1e-3, 1e3])
def test_a_weight_at_the_limits(tmp_path: Path, weight: float) -> None:
    write_task(tmp_path, "task", 4, weight=weight)
    assert spec(tmp_path).weight == weight


def test_an_entry_with_the_name_of_another_directory_has_no_tag(tmp_path: Path) -> None:
    """Triton does not load it: a copy takes nothing from its original."""
    write_task(tmp_path, "task", 4)
    shutil.copytree(tmp_path / "task", tmp_path / "task.bak")
    entry = broken(tmp_path, "task.bak")
    assert (entry.vfm, entry.error.field) == (None, "name")
    assert "it is 'task'" in entry.error.problem
    repository = Repository(tmp_path, BACKBONE)
    assert (repository.tag("task"), repository.tag("task.bak")) == (4, None)


def test_an_entry_without_a_name_has_its_directorys(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4)
    edit(tmp_path / "task" / "config.pbtxt", 'name: "task"\n', "")
    assert spec(tmp_path).vfm == 4


def test_hidden_directories_are_no_tasks(tmp_path: Path) -> None:
    write_task(tmp_path, ".task.swp", 4)
    repository = Repository(tmp_path, BACKBONE)
    assert repository.names() == []
    assert repository.read([".task.swp"]) == {}


def test_the_tag_alone(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4)
    (tmp_path / "empty").mkdir()
    repository = Repository(tmp_path, BACKBONE)
    assert repository.tag("task") == 4
    assert Repository(tmp_path, "other").tag("task") is None
    write_config(tmp_path, "task", 5)
    assert repository.tag("task") == 5
    (tmp_path / "task" / "config.pbtxt").write_text(f"{BACKBONE} {{")
    assert repository.tag("task") is None
    with pytest.raises(FileNotFoundError):
        repository.tag("empty")


def test_a_copy_is_younger_than_its_original_also_after_a_change_of_terms(tmp_path: Path) -> None:
    write_task(tmp_path, "z-original", 4)
    old = tmp_path / "z-original" / "1" / "task.json"
    os.utime(old, (1.0, 1.0))
    shutil.copytree(tmp_path / "z-original", tmp_path / "a-copy", copy_function=shutil.copy)
    write_config(tmp_path, "z-original", 4, weight=2.0)
    repository = Repository(tmp_path, BACKBONE)
    assert repository.oldest(["a-copy", "z-original", "gone"]) == "gone"
    assert repository.oldest(["a-copy", "z-original"]) == "z-original"


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
    fail_to_open(monkeypatch, "task", errno.EACCES)
    assert "Permission denied" in broken(tmp_path).error.problem
    assert isinstance(read(tmp_path, "other"), TaskSpec)


def fail_to_open(monkeypatch: pytest.MonkeyPatch, directory: str, number: int) -> None:
    """Let every file of a directory give this error."""
    former = os.open

    def failing(path: str, flags: int, *mode: int, **options: int) -> int:
        if Path(path).parent.name == directory:
            raise OSError(number, os.strerror(number), path)
        return former(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", failing)


@pytest.mark.parametrize(
    ("put", "says"),
    [
        (lambda file: file.symlink_to(file), "symbolic links"),
        (Path.mkdir, "it is a directory"),
        (os.mkfifo, "it is a FIFO"),
        (lambda file: file.symlink_to("/dev/zero"), "it is a device"),
        (lambda file: (file.touch(), os.truncate(file, 1 << 40)), "larger than 16 MiB"),
    ],
)
def test_what_is_no_regular_file_is_refused_by_itself(tmp_path: Path, put: Callable[[Path], Any], says: str) -> None:
    write_task(tmp_path, "task", 4)
    write_task(tmp_path, "other", 5)
    (tmp_path / "task" / "config.pbtxt").unlink()
    put(tmp_path / "task" / "config.pbtxt")
    entries = Repository(tmp_path, BACKBONE).read()
    assert isinstance(entries["other"], TaskSpec)
    error = broken(tmp_path).error
    assert says in error.problem
    assert error.file == str(tmp_path / "task" / "config.pbtxt")


@pytest.mark.parametrize("name", ["tâche", "a\nb", "x" * 255])
def test_a_task_of_any_name_is_read_as_others_are(tmp_path: Path, name: str) -> None:
    path = write_task(tmp_path, "task", 4)
    (path / os.fsdecode(b"y\xff")).touch()
    (path / "né.txt").touch()
    edit(tmp_path / "task" / "config.pbtxt", 'name: "task"\n', "")  # Triton takes the directory's
    (tmp_path / "task").rename(tmp_path / name)
    entries = Repository(tmp_path, BACKBONE).read()
    assert isinstance(entries[name], TaskSpec)


def test_a_name_that_is_not_utf_8_takes_no_tag(tmp_path: Path) -> None:
    """No request can come by it, and it may be older than a task whose tag it has."""
    write_task(tmp_path, "task", 4)
    edit(tmp_path / "task" / "config.pbtxt", 'name: "task"\n', "")
    name = os.fsdecode(b"x\xff")
    (tmp_path / "task").rename(tmp_path / name)
    entry = Repository(tmp_path, BACKBONE).read()[name]
    assert isinstance(entry, BrokenTask)
    assert entry.vfm is None
    assert printable(str(entry.error)).endswith(
        r"x\xff: (name): it is not UTF-8, as the names of models are. Rename the directory"
    )


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "y" * 256])
def test_a_name_that_no_directory_can_have_costs_nothing_but_itself(tmp_path: Path, name: str) -> None:
    """As it comes from a report of a change."""
    write_task(tmp_path, "other", 5)
    entries = Repository(tmp_path, BACKBONE).read([name, "other"])
    assert isinstance(entries["other"], TaskSpec)
    assert name not in entries or isinstance(entries[name], BrokenTask)


def test_links_that_lead_nowhere_and_everywhere_are_no_tasks(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for place in range(3):
        (tmp_path / "task" / "1" / f"up{place}").symlink_to("..")
    (tmp_path / "task" / "1" / "root").symlink_to("/")
    assert Repository(tmp_path, BACKBONE).names() == ["task"]
    names = [name for name, _, _ in spec(tmp_path).version.signature]
    assert names == ["root", "root -> /", "task.json", *(f"up{n}{to}" for n in range(3) for to in ("", " -> .."))]


def test_an_entry_whose_file_system_is_away_for_a_moment_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path, BACKBONE)
    write_task(tmp_path, "task", 4)
    write_task(tmp_path, "other", 5)
    before = repository.read()
    write_config(tmp_path, "task", 6)
    write_config(tmp_path, "other", 7)
    fail_to_open(monkeypatch, "task", errno.EIO)
    after = repository.read(None, before)
    assert [entry.vfm for entry in after.values()] == [7, 4]
    assert "Input/output error" in str(repository.read()["task"])


def test_whatever_reading_an_entry_raises_is_its_own_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, "task", 4)
    write_task(tmp_path, "other", 5)
    former = tasks._declared_dims

    def unforeseen(proto: Any, step: Any) -> Any:
        if proto.name == "task":
            raise KeyError("odd")
        return former(proto, step)

    monkeypatch.setattr(tasks, "_declared_dims", unforeseen)
    entries = Repository(tmp_path, BACKBONE).read()
    assert isinstance(entries["other"], TaskSpec)
    assert "KeyError: 'odd'" in str(entries["task"])


def test_entries_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    repository = Repository(tmp_path, BACKBONE)
    for name in ("one", "two", "three"):
        write_task(tmp_path, name, 4)
    repository.read()
    shutil.rmtree(tmp_path / "one")
    repository.read(["one"])
    shutil.rmtree(tmp_path / "two")
    repository.read()
    assert list(repository._parsed) == ["three"]


def test_a_backbone_whose_name_is_written_escaped(tmp_path: Path) -> None:
    write_task(tmp_path, "task", 4, backbone="bâse")
    assert "bâse" not in (tmp_path / "task" / "config.pbtxt").read_text(encoding="utf-8")
    assert isinstance(Repository(tmp_path, "bâse").read()["task"], TaskSpec)


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
