"""Rounds over a repository on disk and a server that only remembers, by a clock of the test's own."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import write_version
from controller_rig import EMBEDDING, Rig
from filelock import FileLock
from live_server import status
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import ServerProblem, Unreachable
from fmplex_backend.repository import writer
from fmplex_backend.repository.configs import read_config
from fmplex_backend.repository.writer import ModelRepository
from fmplex_backend.status import BackboneStatus
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.controller import POLL_S, SOON_S
from fmplex_controller.sidecar.seen import Miss
from fmplex_controller.sidecar.triton import SILENT

DEAD = Miss("it is dead", enough=2)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tiny_repository(tmp_path, slots=8))
    yield rig
    rig.pool.shutdown()


def test_directories_come_change_and_go(rig: Rig) -> None:
    rig.write("a")
    assert rig.run(5) == ["load base", "load a"]
    (rig.root / "a" / "2").mkdir()
    assert rig.run(0.5) == []
    (rig.root / "a" / "2" / "task.json").write_text((rig.root / "a" / "1" / "task.json").read_text())
    assert rig.run(3) == ["load a"]
    shutil.rmtree(rig.root / "a")
    assert rig.run(3) == ["unload a"]
    assert rig.run(3) == []
    assert rig.events == [("loaded", BASE), ("loaded", "a"), ("reloaded", "a"), ("unloaded", "a")]


def test_what_nobody_expected_of_one_directory_holds_up_no_other(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a status that this version cannot read does; nor is what was done before it done again."""
    for tag, name in enumerate("abc", 1):
        rig.write(name, tag)
    told = rig.triton.status

    def odd(backbone: str, name: str = "") -> BackboneStatus:
        if name == "b":
            raise ValueError("1 validation error for BackboneStatus")
        return told(backbone, name)

    monkeypatch.setattr(rig.triton, "status", odd)
    assert rig.run(8) == ["load base", "load a", "load c"]
    assert rig.events.count(("postponed", "b")) == 1
    assert [record.exc_info is not None for record in caplog.records if "b: ValueError" in record.message] == [True]
    monkeypatch.undo()
    assert rig.run(2) == ["load b"]


@pytest.mark.parametrize("part", ["probes", "adaptation"])
def test_a_thread_that_fails_ends_the_controller_which_is_started_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Without it nobody would see that a backbone's process has died, or that one is overloaded."""
    rig.begin_anew(ElasticOptions())

    def broken(stop: threading.Event) -> None:
        raise MemoryError("no thread can go on")

    monkeypatch.setattr(getattr(rig.controller, part), "run", broken)
    stop = threading.Event()
    latest = threading.Timer(20, stop.set)  # else it runs for ever
    latest.start()
    with pytest.raises(MemoryError, match="no thread can go on"):
        rig.controller.run(stop)
    latest.cancel()


def test_another_controller_goes_on_where_one_was_killed(rig: Rig) -> None:
    rig.write("a")
    rig.write("b", 2)
    rig.run(5)
    shutil.rmtree(rig.root / "b")
    rig.write("c", 3)
    rig.begin_anew()
    assert sorted(rig.run(6)) == ["load a", "load base", "load c", "unload b"]
    assert rig.run(3) == []


def test_a_bad_one_gets_an_error_that_goes_when_it_is_mended(rig: Rig) -> None:
    version = rig.write("a", document={"family": "text-encoder", "decoder": {"kind": "nothing"}})
    assert rig.run(8) == ["load base"]
    assert f"{version}/task.json: decoder: its kind should be" in rig.error("a")
    stamp = (rig.root / "a" / "ERROR.txt").stat()
    rig.run(3)
    assert (rig.root / "a" / "ERROR.txt").stat() == stamp
    write_version(rig.root, "a", 1, EMBEDDING)
    assert rig.run(4) == ["load a"]
    assert not rig.error("a")
    assert rig.events == [("loaded", BASE), ("quarantined", "a"), ("loaded", "a"), ("mended", "a")]


def test_what_the_backbone_or_triton_refuses_is_tried_once(rig: Rig) -> None:
    rig.write("a")
    rig.write("unknown", 2)
    (rig.root / "other" / "1").mkdir(parents=True)
    rig.triton.errors["a"] = "a/1/decoder.safetensors: weight: its shape is wrong. Train it again"
    rig.triton.refuses["other"] = ServerProblem("no model.onnx", "INTERNAL")
    assert rig.run(10) == ["load base"]
    assert "weight: its shape is wrong" in rig.error("a")
    assert f"{rig.root}/other: (directory): Triton does not load it: no model.onnx." in rig.error("other")
    assert "does not find it in its model repository" in rig.error("unknown")
    rig.triton.errors.clear()
    rig.triton.refuses.clear()
    (rig.root / "a" / "note").touch()
    assert rig.run(3) == ["load a"]


def test_a_server_that_is_away_is_nobodys_fault(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.write("a")
    rig.triton.problem = Unreachable("no server there")
    assert rig.run(5) == []
    assert caplog.text.count("no server there") == 1
    rig.triton.problem = None
    rig.triton.refuses["base"] = Unreachable("it went down")
    assert rig.run(8) == []
    assert rig.events == [("away", ""), ("reachable", ""), ("postponed", BASE)]
    assert not rig.error("base")
    rig.triton.refuses.clear()
    assert rig.run(4) == ["load base", "load a"]


def test_a_repository_that_is_away_unloads_nothing(rig: Rig) -> None:
    rig.write("a")
    rig.run(5)
    rig.root.rename(rig.root.with_name("away"))
    assert rig.run(5) == []
    rig.root.with_name("away").rename(rig.root)
    assert rig.run(5) == []


def test_what_an_entry_lacks_is_written_once(rig: Rig) -> None:
    rig.write("a")
    shutil.copytree(rig.root / "a", rig.root / "b")
    write_version(rig.root, "c", 1, EMBEDDING)
    assert sorted(rig.run(8)) == ["load a", "load b", "load base", "load c"]
    assert {read_config(rig.root / name / "config.pbtxt").name for name in "abc"} == {"a", "b", "c"}


def test_a_directory_of_an_earlier_date_takes_no_tag_from_a_task_that_is_served(rig: Rig) -> None:
    rig.write("a")
    rig.run(5)
    entry = (rig.root / "a" / "config.pbtxt").read_bytes()
    rig.write("b", document={"family": "nothing"})  # with the same tag, and wrong besides
    rig.write("c")
    for name in "bc":
        for file in (rig.root / name).rglob("*"):
            os.utime(file, (0, 0))
    assert rig.run(8) == [], "the backbone has not told yet who has the tag"
    assert rig.run(4, probes=True) == ["load c"]
    assert (rig.root / "a" / "config.pbtxt").read_bytes() == entry
    assert ("completed", "c") in rig.events


def test_a_repository_that_cannot_be_written_to(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fmplex_controller.sidecar.execution.write_error", refuse)
    rig.write("a", document={"family": "nothing"})
    rig.run(10)
    assert caplog.text.count("a is quarantined") == 1
    assert caplog.text.count("no ERROR.txt can be written") == 1


def test_rounds_come_soon_while_something_is_about_to_happen(rig: Rig) -> None:
    assert rig.controller.round(rig.pool) == SOON_S
    rig.run(10)
    assert rig.controller.round(rig.pool) == POLL_S


def test_a_backbone_that_does_not_answer_is_unloaded_and_loaded_again(rig: Rig) -> None:
    rig.write("a")
    rig.run(5)
    assert rig.controller.probes.targets == {BASE}
    rig.controller._told(BASE, DEAD, rig.now)
    assert rig.run(1) == []
    rig.controller._told(BASE, DEAD, rig.now)
    assert rig.run(3) == ["unload a", "unload base", "load base"]
    rig.controller._told(BASE, status().model_copy(update={"up_s": 0.1}), rig.now)
    assert rig.run(2) == ["load a"]
    happened = rig.events[2:]
    assert happened == [
        *(("dead", BASE), ("unloaded", "a"), ("unloaded", BASE), ("loaded", BASE), ("back", BASE), ("loaded", "a"))
    ]
    assert [row.state for row in rig.controller.board.overview().backbones] == ["serving"]


@pytest.mark.parametrize(("elastic", "probes"), [(None, SILENT), (ElasticOptions(), 2 * SILENT)])
def test_a_silent_process_has_as_long_however_often_it_is_probed(
    rig: Rig, elastic: ElasticOptions | None, probes: int
) -> None:
    rig.begin_anew(elastic)
    for number in range(probes):
        assert ("dead", BASE) not in rig.events, number
        rig.controller._told(BASE, Miss("its process does not answer", SILENT), rig.now)
    assert ("dead", BASE) in rig.events


def test_the_file_unloaded_comes_and_goes(rig: Rig) -> None:
    rig.write("a")
    rig.run(5)
    (rig.root / "a" / "UNLOADED").touch()
    assert rig.run(3) == ["unload a"]
    (rig.root / "a" / "UNLOADED").unlink()
    assert rig.run(5) == ["load a"]
    assert rig.events[2:] == [("kept-unloaded", "a"), ("unloaded", "a"), ("released", "a"), ("loaded", "a")]


def test_directories_that_cannot_be_written_to_hold_up_no_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = itertools.count()

    def refuse(_models: ModelRepository, _name: str, _proto: Any) -> None:
        raise PermissionError(13, "Permission denied", f"/.fmplex-staging-{next(aside)}")

    rig.write("a")
    for name in "bc":
        shutil.copytree(rig.root / "a", rig.root / name)
    with monkeypatch.context() as patched:
        patched.setattr(ModelRepository, "_replace_config", refuse)
        assert rig.run(10) == ["load base", "load a"]
    assert [event for event in rig.events if event[0] == "postponed"] == [("postponed", "b"), ("postponed", "c")]
    assert sorted(rig.run(4)) == ["load b", "load c"]


def test_a_lock_that_others_hold_for_long_refuses_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LOCK_S", 0.0)
    rig.write("a")
    for name in "bc":
        shutil.copytree(rig.root / "a", rig.root / name)
    with FileLock(rig.root / writer.LOCK):
        assert rig.run(8) == ["load base", "load a"]
    assert sorted(rig.run(4)) == ["load b", "load c"]
    assert not [event for event in rig.events if event[0] in ("refused", "quarantined")]


def test_what_is_loaded_by_hand_after_it_was_refused_is_taken_up_with_its_tasks(rig: Rig) -> None:
    rig.write("a")
    rig.triton.refuses["base"] = ServerProblem("no memory is left", "INTERNAL")
    assert not rig.run(10)
    assert "no memory is left" in rig.error("base")
    rig.triton.refuses.clear()
    rig.triton.load("base")
    assert rig.run(5) == ["load base", "load a"]
    assert not rig.error("base")


def test_what_was_refused_for_a_reason_that_has_passed_is_loaded_a_minute_later(rig: Rig) -> None:
    rig.write("a")
    rig.write("b", 2)
    rig.triton.errors |= {"a": "a/1/decoder.safetensors: it cannot be read: Stale file handle", "b": "b/1: it is wrong"}
    assert rig.run(10) == ["load base"]
    assert "Stale file handle" in rig.error("a")
    del rig.triton.errors["a"]
    assert rig.run(40) == []
    assert rig.run(20) == ["load a"]
    assert not rig.error("a")
    rig.run(600, 2.0)
    assert rig.events.count(("refused", "b")) == 2
