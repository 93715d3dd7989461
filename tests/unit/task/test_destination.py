"""Where a task is to be saved and served, checked before it is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backend_fixtures import edit, text_task, write_task
from live_server import FakeServer, status, task
from task_fixtures import fitted, labelled
from task_fixtures import spam as task_of

from fmplex import Backbone, ControlClosed, DeadlineExceeded, ServerProblem, TaskProblem, Unreachable
from fmplex.task import destination
from fmplex.task.destination import check_destination, tag_holders
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.writer import ModelRepository


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """One that serves the repository's backbone, and a task on it."""
    server = FakeServer({"base": status(task("one"))})
    monkeypatch.setattr(destination, "Client", server.client)
    return server


def check(root: Path) -> None:
    check_destination("spam", "base", root, Terms(), "host:1")


def test_a_server_on_this_repository_will_do(root: Path, server: FakeServer) -> None:
    check(root)
    assert server.address == "host:1"


def test_a_server_on_another_repository_will_not(root: Path, server: FakeServer) -> None:
    server.backbones = {"other": status(task("one", backbone="other"))}
    with pytest.raises(TaskProblem, match="has no backbone 'base', but other"):
        check(root)


@pytest.mark.parametrize("kind", [ControlClosed, DeadlineExceeded, Unreachable])
def test_what_would_keep_it_from_being_loaded_is_raised(
    root: Path, server: FakeServer, kind: type[ServerProblem]
) -> None:
    server.problem = kind("it is so")
    with pytest.raises(kind, match="it is so"):
        check(root)


def test_a_server_that_cannot_list_its_models_will_do(root: Path, server: FakeServer) -> None:
    """Whatever its words are: a link that leads nowhere may have any name."""
    server.problem = ServerProblem("failed to stat file /models/control key")
    check(root)


# -- of several tasks with one tag


@pytest.fixture
def copied(root: Path) -> Path:
    """`spam` has a later copy with its tag."""
    write_task(root, "spam", 3, task=text_task({"kind": "embedding"}))
    shutil.copytree(root / "spam", root / "copy")
    edit(root / "copy" / "config.pbtxt", 'name: "spam"', 'name: "copy"')
    return root


def test_which_of_two_with_one_tag_is_saved_is_as_the_server_says(copied: Path, server: FakeServer) -> None:
    server.backbones = {"base": status(task("copy", tag=3))}
    with pytest.raises(TaskProblem, match="VFM_3 on 'base' is the tag of 'copy' too, which the server answers for"):
        check(copied)
    server.backbones = {"base": status(task("spam", tag=3))}
    check(copied)


def test_where_the_server_does_not_tell_the_repository_decides(copied: Path, server: FakeServer) -> None:
    server.problem = ServerProblem("the backbone is too busy to tell")
    check(copied)
    with pytest.raises(TaskProblem, match="'spam' too, whose files in the repository are older"):
        check_destination("copy", "base", copied, Terms(), "host:1")


def test_a_version_of_the_one_that_the_server_answers_for_is_saved(
    root: Path, backbone: Backbone, server: FakeServer
) -> None:
    """Whatever the dates: a copy may have been loaded first."""
    spam = fitted(task_of(backbone), labelled(40))
    spam.save()
    shutil.copytree(root / "spam", root / "copy")
    edit(root / "copy" / "config.pbtxt", 'name: "spam"', 'name: "copy"')
    _, entry = ModelRepository(root).task("spam")
    spam.name = "copy"
    with pytest.raises(TaskProblem, match="'spam' too, whose files in the repository are older"):
        spam.save()
    server.backbones = {"base": status(task("copy", tag=entry.vfm))}
    assert spam.save(server="host:1") == root / "copy" / "2"


def test_who_has_a_tag_is_not_who_leaves_it_or_is_refused_without_one(server: FakeServer) -> None:
    told = (task("spam", tag=3), task("left", tag=4, state="leaving"), task("copy", tag=None, state="refused"))
    server.backbones = {"base": status(*told, task("torn", tag=5, state="refused"))}
    assert tag_holders("host:1", "base") == {3: "spam", 5: "torn"}
    assert tag_holders("", "base") == {}
