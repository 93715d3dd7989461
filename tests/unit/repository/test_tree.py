"""What changes in a repository is told by the directory of the root that it lies in, whatever its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmplex_backend.repository.inotify import HEADER, OVERFLOW
from fmplex_backend.repository.tree import Tree

LATIN = os.fsdecode(b"x\xff")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("a", "b", LATIN):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "file").write_text("one")
    return root


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    tree = Tree(root, [os.path.realpath(root.parent / "elsewhere")])
    yield tree
    tree.close()


def write(root: Path) -> None:
    (root / "a" / "1" / "file").write_text("two")


def rename_over(root: Path) -> None:
    (root / "a" / "aside").write_text("two")
    (root / "a" / "aside").rename(root / "a" / "1" / "file")


def close_to_others(root: Path) -> None:
    (root / "a" / "1").chmod(0o700)


@pytest.mark.parametrize(
    "change",
    [
        write,
        rename_over,
        close_to_others,
        lambda root: (root / "a" / "1" / "file").unlink(),
        lambda root: (root / "a" / "1" / os.fsdecode(b"y\xff")).touch(),
        lambda root: (root / "a").rename(root.parent / "a"),
        lambda root: shutil.rmtree(root / "a"),
    ],
)
def test_a_change_at_any_depth(root: Path, tree: Tree, change: Callable[[Path], object]) -> None:
    assert tree.take() == set()
    change(root)
    assert tree.wait(0)
    assert tree.take() == {"a"}


def test_reading_is_no_change(root: Path, tree: Tree) -> None:
    for name in os.listdir(root):
        assert (root / name / "1" / "file").read_text()
        assert os.listdir(root / name)
    assert not tree.wait(0)


def test_a_name_that_is_not_utf_8(root: Path, tree: Tree) -> None:
    """It is told as any other, and holds up no other."""
    (root / LATIN / "1" / "file").write_text("two")
    (root / "b" / "1" / "file").write_text("two")
    assert tree.take() == {LATIN, "b"}
    (root / os.fsdecode(b"z\xff")).mkdir()
    assert tree.take() == {os.fsdecode(b"z\xff")}


@pytest.mark.parametrize("come", [lambda new: new.mkdir(), lambda new: new.symlink_to(new.parents[1] / "elsewhere")])
def test_what_came_is_followed(root: Path, tree: Tree, come: Callable[[Path], object]) -> None:
    (root.parent / "elsewhere").mkdir()
    come(root / "new")
    assert tree.take() == {"new"}
    (root / "new" / "1").mkdir()
    (root / "new" / "1" / "early").touch()
    assert tree.take() == {"new"}
    (root / "new" / "1" / "late").touch()
    assert tree.take() == {"new"}


def test_what_was_moved_here_is_followed_by_its_new_name(root: Path, tree: Tree) -> None:
    (root / "a").rename(root / "c")
    assert tree.take() == {"a", "c"}
    (root / "c" / "1" / "file").write_text("two")
    found = tree.take()
    assert found
    assert "c" in found


@pytest.mark.parametrize("place", ["new", "a/1/new"])
def test_links_that_lead_elsewhere_are_not_followed(
    root: Path, tree: Tree, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may lead to all of the file system; that one came, or goes, is told all the same."""
    outside = root.parent / "elsewhere not allowed"
    (outside / "deep").mkdir(parents=True)
    (root / place).symlink_to(outside)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} is listed"))
        assert tree.take() == {Path(place).parts[0]}
    (outside / "deep" / "file").touch()
    assert tree.take() == set()
    (root / place).unlink()
    assert tree.take() == {Path(place).parts[0]}


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "own").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "none").symlink_to("none")
    tree = Tree(tmp_path)
    (tmp_path / "a" / "file").touch()
    assert tree.take() == {"a"}
    tree.close()


def test_where_events_were_lost_anything_may_have_changed(
    root: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "new" / "1").mkdir(parents=True)
    data = [HEADER.pack(-1, OVERFLOW, 0, 0)]

    def read(descriptor: int, size: int) -> bytes:
        if not data:
            raise BlockingIOError
        return data.pop()

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        assert tree.take() is None
    assert tree.take() == {"new"}
    (root / "new" / "1" / "file").touch()
    assert tree.take() == {"new"}


@pytest.mark.parametrize("leave", [shutil.rmtree, lambda root: root.rename(root.with_name("other"))])
def test_the_root_leaves(root: Path, tree: Tree, leave: Callable[[Path], object]) -> None:
    leave(root)
    with pytest.raises(OSError, match="removed, moved or unmounted"):
        tree.take()


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tree(tmp_path / "none")
