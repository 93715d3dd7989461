"""What a version may have read: its own files, and those in roots that the operator allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fmplex_backend.confinement import MAX_VERSION_BYTES, Confinement
from fmplex_backend.errors import TaskRefused
from fmplex_backend.files import open_regular, read_text
from fmplex_backend.server_variables import ALLOW_LINKS

ALONE = Confinement()


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version with a file and a folder, and a file outside of the repository."""
    path = tmp_path / "repository" / "spam" / "1"
    (path / "adapter").mkdir(parents=True)
    (path / "task.json").write_text("own")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return path


def link(path: Path, target: Path | str) -> None:
    path.symlink_to(target)


def move_and_link(path: Path, to: Path) -> None:
    path.rename(to)
    path.symlink_to(to)


LEADING_OUT: dict[str, Callable[[Path, Path], None]] = {
    "file": lambda version, outside: link(version / "decoder.safetensors", outside / "secret"),
    "relative": lambda version, outside: link(version / "adapter" / "x", "../../../../outside/secret"),
    "folder": lambda version, outside: link(version / "folder", outside),
    "link to a link": lambda version, outside: (
        link(outside / "second", outside / "secret"),
        link(version / "first", outside / "second"),
    ),
    "dangling": lambda version, outside: link(version / "later", outside / "later"),
    "version": lambda version, outside: move_and_link(version, outside / "1"),
    "task": lambda version, outside: move_and_link(version.parent, outside / "spam"),
    "another task": lambda version, outside: link(version / "other", version.parents[1] / "ham"),
    "task.json of the repository": lambda version, outside: link(version / "x", version.parents[1]),
}


@pytest.mark.parametrize("make", LEADING_OUT.values(), ids=LEADING_OUT)
def test_links_that_lead_out(version: Path, tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    make(version, tmp_path / "outside")
    with pytest.raises(TaskRefused, match="outside of the version directory") as caught, ALONE.around(version, 0):
        pass
    assert caught.value.field == "(link)"
    assert "--allow-links" in caught.value.remedy
    with Confinement.of({ALLOW_LINKS: str(tmp_path)}, 1).around(version, 1):
        pass


def test_links_inside_are_followed(version: Path) -> None:
    link(version / "..data", "adapter")  # as a mounted ConfigMap has it
    (version / "adapter" / "head").write_text("head")
    link(version / "decoder", "..data/head")
    with ALONE.around(version, 0):
        assert read_text(version / "decoder") == "head"


def test_the_repository_itself_may_be_a_link(version: Path, tmp_path: Path) -> None:
    link(tmp_path / "served", version.parents[1])
    with ALONE.around(tmp_path / "served" / "spam" / "1", 0):
        assert read_text(tmp_path / "served" / "spam" / "1" / "task.json") == "own"


def test_a_link_that_is_put_there_later_is_not_opened(version: Path, tmp_path: Path) -> None:
    with ALONE.around(version, 0):
        link(version / "late", tmp_path / "outside" / "secret")
        with pytest.raises(OSError, match="outside of the version directory"):
            open_regular(version / "late")
        with pytest.raises(OSError, match="outside of the version directory"):
            open_regular(tmp_path / "outside" / "secret")
        assert read_text(version / "task.json") == "own"
    assert read_text(version / "late") == "secret"  # nothing is loaded any more


def test_a_root_does_not_allow_what_begins_like_it(version: Path, tmp_path: Path) -> None:
    link(version / "x", tmp_path / "outside" / "secret")
    for root in ("out", "outside/secret/more", ""):
        allowed = Confinement.of({ALLOW_LINKS: str(tmp_path / root) if root else ""}, 9)
        with pytest.raises(TaskRefused, match="leads to"), allowed.around(version, 0):
            pass


def test_roots_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link(tmp_path / "root", tmp_path / "real")
    roots = os.pathsep.join([str(tmp_path / "root"), "", "/srv"])
    assert Confinement.of({ALLOW_LINKS: roots}, 7) == Confinement((str(tmp_path / "real"), "/srv"), 7)
    assert Confinement.of({}, MAX_VERSION_BYTES) == ALONE


def test_a_version_that_is_too_large(version: Path) -> None:
    with pytest.raises(TaskRefused, match="its files have 5 MiB, 4 MiB are allowed") as caught:  # noqa: SIM117
        with Confinement(most=4 << 20).around(version, 5 << 20):
            pass
    assert "max_version_bytes" in caught.value.remedy


def test_a_file_that_has_grown_since(version: Path) -> None:
    with Confinement(most=1 << 20).around(version, 3):
        os.truncate(version / "task.json", 1 << 40)
        with pytest.raises(OSError, match="1 MiB are allowed"):
            open_regular(version / "task.json")
