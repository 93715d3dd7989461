"""A repository as people read it: no task vanishes, and one that is still elsewhere is read as if it were here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, edit, text_task, write_config, write_task
from task_fixtures import tiny_repository

from fmplex_backend.errors import BackboneRefused, TaskProblem
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_backend.repository.tasks import BrokenTask, TaskSpec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a task of tag 0; the backbone has four slots."""
    root = tiny_repository(tmp_path, slots=4)
    write_task(root, "one", 0, task=text_task({"kind": "embedding"}))
    return root


@pytest.fixture
def reader(root: Path) -> RepositoryReader:
    return RepositoryReader(root)


def broken(entry: TaskSpec | BrokenTask) -> str:
    assert isinstance(entry, BrokenTask), entry
    return str(entry.error)


def test_a_task_whose_backbone_is_missing_does_not_vanish(root: Path, reader: RepositoryReader) -> None:
    write_task(root, "orphan", 7, backbone="elsewhere")
    backbone, entry = reader.tasks()["orphan"]
    assert (backbone, entry.vfm) == ("elsewhere", 7)
    assert f"orphan/config.pbtxt: ensemble_scheduling.step.model_name: there is no backbone 'elsewhere' in {root}" in (
        broken(entry)
    )
    assert f"which has {BACKBONE}" in broken(entry)


@pytest.mark.parametrize("text", ["", "platform: ", 'name: "m" backend: "onnxruntime"'])
def test_other_models_are_no_tasks(root: Path, reader: RepositoryReader, text: str) -> None:
    (root / "other").mkdir()
    (root / "other" / "config.pbtxt").write_text(text)
    assert reader.tasks().keys() == {"one"}


def test_a_file_that_is_no_text_hides_nobody(root: Path, reader: RepositoryReader) -> None:
    (root / "binary").mkdir()
    (root / "binary" / "config.pbtxt").write_bytes(b"\xff\xfe")
    assert reader.tasks().keys() == {"one"}
    assert reader.backbones() == [BACKBONE]
    assert reader.unreadable().keys() == {"binary"}
    assert "binary/config.pbtxt is not UTF-8" in reader.unreadable()["binary"]


class TestEntriesElsewhere:
    @pytest.fixture
    def aside(self, tmp_path: Path) -> Path:
        aside = tmp_path / "aside"
        aside.mkdir()
        return aside

    def test_one_that_would_be_served(self, reader: RepositoryReader, aside: Path) -> None:
        write_task(aside, "two", 1, task=text_task({"kind": "embedding"}))
        backbone, entry = reader.entry_in(aside / "two")
        assert isinstance(entry, TaskSpec)
        assert (backbone, entry.name, entry.vfm) == (BACKBONE, "two", 1)

    def test_a_tag_that_is_taken(self, root: Path, reader: RepositoryReader, aside: Path) -> None:
        shutil.copytree(root / "one", aside / "copy")
        edit(aside / "copy" / "config.pbtxt", 'name: "one"', 'name: "copy"')
        assert "VFM_0 is the tag of 'one' in the repository too. Give it a tag below 4" in broken(
            reader.entry_in(aside / "copy")[1]
        )

    def test_a_tag_beyond_the_slots(self, reader: RepositoryReader, aside: Path) -> None:
        write_task(aside, "two", 4)
        assert "VFM_4 is beyond the backbone's vfm_slots of 4" in broken(reader.entry_in(aside / "two")[1])

    def test_what_would_take_the_place_of_a_task(self, root: Path, reader: RepositoryReader, aside: Path) -> None:
        shutil.copytree(root / "one", aside / "one")
        assert isinstance(reader.entry_in(aside / "one")[1], TaskSpec)

    def test_what_is_wrong_with_the_entry_itself(self, reader: RepositoryReader, aside: Path) -> None:
        write_config(aside, "half", 1)
        assert "there is no such version directory" in broken(reader.entry_in(aside / "half")[1])

    def test_a_backbone_that_is_not_here(self, reader: RepositoryReader, aside: Path) -> None:
        write_task(aside, "two", 1, backbone="elsewhere")
        assert "there is no backbone 'elsewhere'" in broken(reader.entry_in(aside / "two")[1])

    def test_a_directory_that_is_not_there(self, reader: RepositoryReader, aside: Path) -> None:
        with pytest.raises(TaskProblem, match=r"there is no directory .*/aside/nothing"):
            reader.entry_in(aside / "nothing")

    def test_what_is_no_task(self, reader: RepositoryReader, aside: Path) -> None:
        with pytest.raises(TaskProblem, match=r"aside is no task: config\.pbtxt with an ensemble step"):
            reader.entry_in(aside)


def test_slots_that_are_no_number(root: Path, reader: RepositoryReader) -> None:
    edit(root / BACKBONE / "config.pbtxt", '"4"', '"many"')
    with pytest.raises(BackboneRefused, match=r"base/config\.pbtxt: parameters\.vfm_slots: .*'many'"):
        reader.slots(BACKBONE)


def test_a_link_that_cannot_be_followed_hides_no_other(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path)
    (root / "link").symlink_to("x" * 300)
    assert RepositoryReader(root).names() == [BACKBONE]
