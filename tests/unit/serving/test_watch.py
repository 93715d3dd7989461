"""When the repository is read: at a change on disk, every so often where none is reported, and for unknown tags."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import LoaderRig, write_config, write_task

from fmplex_backend.repository import following
from fmplex_backend.serving import watch as watch_module
from fmplex_backend.serving.watch import Watch
from fmplex_backend.types import Vfm


@pytest.fixture
def rig(tmp_path: Path) -> LoaderRig:
    return LoaderRig(tmp_path)


@pytest.fixture
def watch(rig: LoaderRig) -> Watch:
    return Watch(rig.loader)


@pytest.fixture
def followed(watch: Watch) -> Iterator[list[Any]]:
    """What `follow_forever`, on a thread, passes to `settle`; what is due is done on another."""
    looks: list[Any] = []
    former = watch.loader.settle

    def settle(names: Any = None) -> bool:
        if names != ():
            looks.append(names)
        return former(names)

    watch.loader.settle = settle  # type: ignore[method-assign]
    with running(watch, watch.follow_forever, watch.settle_forever):
        yield looks


@contextlib.contextmanager
def running(watch: Watch, *mains: Callable[[], None]) -> Iterator[None]:
    """On threads of their own, until the block ends."""
    threads = [threading.Thread(target=main) for main in mains]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        watch.stop()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


def eventually(condition: Any, again: Any = None) -> None:
    """Poll; `again` is done before each look, because the watch may begin after the first write."""
    for _ in range(1000):
        if again is not None:
            again()
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it never came")


def test_watching_follows_a_change(rig: LoaderRig, followed: list[Any]) -> None:
    write_task(rig.root, "one", 0)
    eventually(lambda: 5 in rig.loader.table, lambda: write_config(rig.root, "one", 5))
    assert any(names == {"one"} for names in followed)


@pytest.mark.parametrize("error", [OSError("no inotify handles are left"), RuntimeError("not supported")])
def test_where_the_system_reports_no_changes_the_repository_is_polled(
    rig: LoaderRig, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(following, "Tree", broken)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    with running(watch, watch.follow_forever, watch.settle_forever):
        write_task(rig.root, "one", 3)
        eventually(lambda: 3 in rig.loader.table)
    assert str(error) in caplog.text


def test_while_something_waits_for_the_server_rounds_come_by_themselves(
    rig: LoaderRig, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "SETTLE_S", 0.01)
    write_task(rig.root, "one", 0)
    rig.refresh()
    rounds: list[Any] = []
    former = watch.loader.settle

    def settle(names: Any = None) -> bool:
        rounds.append(names)
        return former(names)

    monkeypatch.setattr(watch.loader, "settle", settle)
    with running(watch, watch.settle_forever):
        threading.Event().wait(0.1)
        assert rounds == []
        write_task(rig.root, "two", 0)
        rig.models.loaded = {"two"}
        former()
        eventually(lambda: rig.models.unloads == ["two"])
        eventually(lambda: isinstance(rig.loader.table[0], Vfm))
        assert set(rounds) == {()}


def test_versions_are_loaded_also_where_the_server_cannot_be_asked_to_unload(
    rig: LoaderRig, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(rig.loader.rounds, "unload_newcomers", broken)
    write_task(rig.root, "one", 0)
    rig.loader.settle()
    watch._unsettled.set()
    with running(watch, watch.settle_forever):
        eventually(lambda: 0 in rig.loader.table)
    assert "nobody expected this" in caplog.text


def test_a_newcomer_that_a_request_finds_is_unloaded_at_once(
    rig: LoaderRig, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "SETTLE_S", 1000.0)
    write_task(rig.root, "one", 0)
    rig.refresh()
    write_task(rig.root, "two", 0)
    rig.models.loaded = {"two"}
    with running(watch, watch.settle_forever, watch.look_up_forever):
        watch.look_up(lambda: None)
        eventually(lambda: rig.models.unloads == ["two"])


def test_changes_are_followed_again_after_some_polls(
    rig: LoaderRig, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []
    former = following.Tree

    def sometimes(*args: Any, **options: Any) -> Any:
        tries.append("")
        if len(tries) == 3:
            watch.stop()
            return former(*args)
        raise OSError("no inotify handles are left")

    monkeypatch.setattr(following, "Tree", sometimes)
    monkeypatch.setattr(following, "POLL_S", 0.001)
    monkeypatch.setattr(following, "POLLS", 2)
    watch.follow_forever()
    assert len(tries) == 3
    assert caplog.text.count("are polled for") == 1, "the same thing is said once"


def test_a_look_up_is_answered_after_a_look(rig: LoaderRig, watch: Watch) -> None:
    write_task(rig.root, "one", 0)
    found: list[bool] = []
    for _ in range(3):
        watch.look_up(lambda: found.append(0 in rig.loader.table))
    watch.stop()
    thread = threading.Thread(target=watch.look_up_forever)
    thread.start()
    thread.join(20)
    assert found == [True] * 3
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["a" * 300, "../outside", "..", "nul\0", "\ud800", ""])
def test_of_a_name_that_is_no_directory_s_everything_is_read(rig: LoaderRig, watch: Watch, name: str) -> None:
    write_task(rig.root, "one", 0)
    found: list[bool] = []
    watch.look_up(lambda: found.append(0 in rig.loader.table), name)
    watch.stop()
    watch.look_up_forever()
    assert found == [True]


def test_look_ups_that_nobody_serves_are_given_back_and_the_thread_ends(watch: Watch) -> None:
    def one() -> None: ...
    def two() -> None: ...

    watch.look_up(one)
    watch.look_up(two)
    assert watch.unanswered() == [one, two]
    thread = threading.Thread(target=watch.look_up_forever)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_look_ups_that_were_taken_when_the_thread_dies_are_given_back(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    def one() -> None: ...

    watch.look_up(broken)
    watch.look_up(one)
    with pytest.raises(RuntimeError, match="a bug"):
        watch.look_up_forever()
    assert watch.unanswered() == [one]


def test_a_look_that_fails_is_not_the_last(
    rig: LoaderRig, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[bool] = []
    fails = [True, False]
    former = watch.loader.refresh

    def refresh(names: Any = None, only: Any = None) -> None:
        if fails.pop(0):
            raise ValueError("embedded null byte")
        former(names, only)

    monkeypatch.setattr(watch.loader, "refresh", refresh)
    write_task(rig.root, "one", 0)
    watch.look_up(lambda: (found.append(0 in rig.loader.table), watch.look_up(last)))

    def last() -> None:
        found.append(0 in rig.loader.table)
        watch.stop()

    watch.look_up_forever()
    assert found == [False, True]
    assert "embedded null byte" in caplog.text


def test_beside_a_name_that_is_not_utf8_changes_are_followed(
    rig: LoaderRig, followed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    name = os.fsdecode(b"x\xff")
    odd = rig.root / name
    odd.mkdir()
    eventually(lambda: {name} in followed, lambda: (odd / "file").write_text("x"))
    write_task(rig.root, "tâche", 3)
    eventually(lambda: 3 in rig.loader.table)
    assert any("tâche" in (names or ()) for names in followed)
    assert "are polled for" not in caplog.text
