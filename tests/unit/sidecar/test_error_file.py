"""ERROR.txt as a file: nothing that lies in a directory leads its writer elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from fmplex_controller.sidecar.error_file import error_in, remove_error, write_error


def test_it_is_written_and_removed(tmp_path: Path) -> None:
    write_error(tmp_path, "it is wrong")
    assert error_in(tmp_path) == "it is wrong"
    remove_error(tmp_path)
    assert os.listdir(tmp_path) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    outside, directory = tmp_path / "outside", tmp_path / "task"
    outside.write_text("somebody's")
    directory.mkdir()
    for name in ("ERROR.txt", f".ERROR.txt.{os.getpid()}"):
        (directory / name).symlink_to(outside)
    write_error(directory, "it is wrong")
    assert outside.read_text() == "somebody's"
    assert error_in(directory) == "it is wrong"
    assert os.listdir(directory) == ["ERROR.txt"]
