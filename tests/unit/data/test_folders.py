"""Folders of files, by label."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex.data.folders import files_in, labelled_files
from fmplex.data.items import item_of, located
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.text_encoder.inputs import TEXT
from fmplex_backend.families.vision_encoder.inputs import IMAGE_BYTES


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def test_labels_are_folders_names(tmp_path: Path) -> None:
    cat, deep, dog = tmp_path / "cat" / "1.png", tmp_path / "cat" / "a" / "2.JPEG", tmp_path / "dog" / "3.webp"
    touch(cat, deep, dog, tmp_path / "top.png", tmp_path / "dog" / "notes.txt", tmp_path / "dog" / ".git" / "4.png")
    touch(tmp_path / ".cache" / "5.png")
    assert labelled_files(tmp_path, IMAGE_BYTES) == ([cat, deep, dog], ["cat", "cat", "dog"])
    assert files_in(tmp_path / "cat", IMAGE_BYTES) == [cat, deep]


def test_what_holds_none_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "top.png")
    with pytest.raises(TaskProblem, match="has no labelled files"):
        labelled_files(tmp_path, IMAGE_BYTES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskProblem, match="has no files of these kinds"):
        files_in(tmp_path / "empty", IMAGE_BYTES)
    with pytest.raises(TaskProblem, match="reads TEXT"):
        files_in(tmp_path, TEXT)


def test_a_table_names_files_from_its_folder_or_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "table" / "a.png", tmp_path / "here" / "b.png")
    monkeypatch.chdir(tmp_path / "here")
    assert located("a.png", IMAGE_BYTES, tmp_path / "table") == tmp_path / "table" / "a.png"
    assert located("b.png", IMAGE_BYTES, tmp_path / "table") == "b.png"
    assert located("a.png", TEXT, tmp_path / "table") == "a.png"
    found = item_of({"image": "a.png"}, ["image"], IMAGE_BYTES, tmp_path / "table")
    assert found.source == tmp_path / "table" / "a.png"
    with pytest.raises(ValueError, match=r"there is no file c\.png"):
        item_of({"image": "c.png"}, ["image"], IMAGE_BYTES, tmp_path / "table")
