"""What is written in a directory that is followed is told at once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fmplex_backend.repository import inotify
from fmplex_backend.repository.inotify import BUFFER, HEADER, OVERFLOW
from fmplex_backend.serving.edits import Edits

NAME = "config"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / NAME).write_text("one")
    return tmp_path


@pytest.fixture
def edits(root: Path) -> Edits:
    """Follows the directory `a`."""
    edits = Edits(str(root), NAME)
    assert edits.follow("a")
    return edits


def rename_over(file: Path) -> None:
    file.with_name("aside").write_text("two")
    file.with_name("aside").rename(file)


def link_over(file: Path) -> None:
    file.unlink()
    os.link(file.parents[1] / "b" / NAME, file)


@pytest.mark.parametrize("change", [lambda file: file.write_text("two"), rename_over, link_over])
def test_a_file_that_is_written(root: Path, edits: Edits, change: Callable[[Path], object]) -> None:
    assert edits.take() == set()
    change(root / "a" / NAME)
    assert edits.take() == {"a"}
    assert edits.take() == set()


def test_other_files_and_other_directories_are_not_told(root: Path, edits: Edits) -> None:
    (root / "a" / "other").write_text("two")
    (root / "a" / "1").mkdir()
    (root / "b" / NAME).write_text("two")
    assert edits.take() == set()


def test_a_directory_under_another_name_is_told_by_it_once_it_is_followed(root: Path, edits: Edits) -> None:
    (root / "a").rename(root / "c")
    assert edits.follow("c")
    (root / "c" / NAME).write_text("two")
    assert edits.take() == {"c"}


def test_one_that_is_removed_is_told_once(root: Path, edits: Edits) -> None:
    shutil.rmtree(root / "a")
    assert not edits.follow("a")
    assert edits.take() == {"a"}
    assert edits.take() == set()
    (root / "a").mkdir()
    assert edits.follow("a")
    (root / "a" / NAME).touch()
    assert edits.take() == {"a"}


def test_more_than_a_buffer_of_events(root: Path, edits: Edits) -> None:
    for number in range(2 + BUFFER // (HEADER.size + 16)):
        (root / "a" / f"{number}").touch()
    (root / "a" / NAME).write_text("two")
    assert edits.take() == {"a"}


def test_where_events_were_lost_all_may_have_changed(edits: Edits, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edits.follow("b")
    data = [HEADER.pack(-1, OVERFLOW, 0, 0)]

    def read(descriptor: int, size: int) -> bytes:
        if not data:
            raise BlockingIOError
        return data.pop()

    monkeypatch.setattr(os, "read", read)
    assert edits.take() == {"a", "b"}


def test_where_the_system_tells_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify.ctypes, "CDLL", lambda name, use_errno: object())
    edits = Edits(str(root), NAME)
    assert not edits.follow("a")
    (root / "a" / NAME).write_text("two")
    assert edits.take() == set()


def test_that_no_more_can_be_followed_is_said_once(
    root: Path, edits: Edits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not edits.follow("nowhere")
    assert caplog.text == ""

    def full(directory: bytes, mask: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(edits._inotify, "watch", full)
    assert (edits.follow("a"), edits.follow("b")) == (False, False)
    assert caplog.text.count("are seen some milliseconds late: No space left on device") == 1


def test_its_descriptor_is_closed_with_it(root: Path) -> None:
    edits = Edits(str(root), NAME)
    assert edits._inotify
    descriptor = edits._inotify.descriptor
    del edits
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
