"""A model's directory: what tells that it has changed is in other tests; here the file that keeps it unloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex_backend.repository.directory import UNLOADED, set_unloaded


def test_the_file_comes_and_goes(tmp_path: Path) -> None:
    assert [set_unloaded(tmp_path, True), (tmp_path / UNLOADED).exists()] == [True, True]
    assert not set_unloaded(tmp_path, True)
    assert [set_unloaded(tmp_path, False), (tmp_path / UNLOADED).exists()] == [True, False]


def test_no_file_comes_into_being_where_a_link_leads(tmp_path: Path) -> None:
    directory = tmp_path / "task"
    directory.mkdir()
    (directory / UNLOADED).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        set_unloaded(directory, True)
    assert not (tmp_path / "elsewhere").exists()
