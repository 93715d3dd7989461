"""Requests whose client has cancelled leave the queue."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import EngineRig, write_task, write_version
from service_fixtures import Gate, ServiceRig, until

from fmplex_backend.errors import ExecutionFailed
from fmplex_backend.serving import cancellation
from fmplex_backend.serving.cancellation import Cancellation
from fmplex_backend.types import Failed, Request, Vfm


def test_a_client_that_went_away_is_not_served(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "PERIOD_S", 0.02)
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate, max_items=1)
    rig.service.start()
    rig.submit(0)
    gate.wait()
    for handle in (None, lambda: True, lambda: True, broken_handle, lambda: False, lambda: True):
        rig.submit(0, is_cancelled=handle)
    sent, posted, post = rig.service.engine.clock(), Counter[str](), rig.service.engine.post

    def posting(command: Any) -> None:
        post(command)
        posted[getattr(command, "func", command).__name__] += 1

    monkeypatch.setattr(rig.service.engine, "post", posting)
    until(lambda: rig.service.engine.clock() > sent + 2 * cancellation.PERIOD_S)  # those that wait for less are spared
    gate.step()
    gate.wait()
    until(lambda: posted["_find_waiting"] >= 1)
    gate.step()
    gate.wait()
    until(lambda: posted["cancel"] >= 3)
    gate.free()
    rig.caller.wait()
    codes = rig.codes()
    gone = codes[2:4]  # one of them may be in a pass by then
    assert "CANCELLED" in gone
    assert set(gone) <= {"", "CANCELLED"}
    assert codes[:2] + codes[4:] == ["", "", "", "", "CANCELLED"]
    rig.stop()


def test_a_sequence_that_runs_alone_is_asked_about_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever this thread looks, it is in a batch."""
    monkeypatch.setattr(cancellation, "PERIOD_S", 0.02)
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path)
    rig.service.start()
    rig.submit(0, text="steps=1000000", is_cancelled=lambda: True)
    rig.caller.wait()
    assert rig.codes() == ["CANCELLED"]
    rig.stop()


def test_so_is_not_a_client_whose_request_waits_to_be_prepared(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has the first of these requests in hand, and the others wait for it."""
    monkeypatch.setattr(cancellation, "PERIOD_S", 0.02)
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate)
    prepare, begun, go_on = rig.service.runtime.prepare, threading.Event(), threading.Event()

    def prepare_slowly(request: Request) -> None:
        begun.set()
        assert go_on.wait(20)
        prepare(request)

    monkeypatch.setattr(rig.service.runtime, "prepare", prepare_slowly)
    rig.service.start()
    gate.free()
    rig.submit(0, is_cancelled=lambda: True)
    assert begun.wait(20)
    for handle in (lambda: True, None, lambda: False, lambda: True):
        rig.submit(0, is_cancelled=handle)
    until(lambda: sum(map(bool, rig.caller.replies)) == 2)
    go_on.set()
    rig.caller.wait()
    assert rig.codes() == ["", "CANCELLED", "", "", "CANCELLED"]
    rig.stop()


class Recorder:
    """In the place of `Replies` and `Preparation`: whose requests are asked about; none wait to be prepared."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def waiting(self, since: float, most: int, after: float) -> list[Request]:
        return []

    def post(self, request: Request, command: Any) -> None:
        self.asked.append(request)

    def post_last(self, command: Any) -> None:
        command()


def test_of_more_than_can_be_asked_about_at_a_time_each_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a task with a long queue do not keep others' from being asked about."""
    monkeypatch.setattr(cancellation, "MAX_ASKED", 2)
    rig, recorder = EngineRig(), Recorder()
    version = write_version(tmp_path, "task", 1, {})
    vfms = [rig.vfm(version), rig.vfm(version)]
    rig.step()
    waiting = []
    for vfm in (vfms[0], vfms[0], vfms[1], vfms[0], vfms[1]):
        waiting.append(rig.make(vfm, "a"))
        rig.engine.scheduler.admit(waiting[-1])
        rig.clock.sleep(1.0)
    rig.clock.sleep(cancellation.PERIOD_S)
    own: Any = recorder
    one = Cancellation(own, rig.engine, own)
    for _ in range(4):
        one._find_waiting(threading.Event())
    assert recorder.asked == [*waiting, *waiting[:2]]


def test_the_server_is_not_asked_about_a_request_that_was_answered(rig: ServiceRig) -> None:
    """Its response object is deleted by then, and the server would end with a segmentation fault."""
    asked: list[threading.Thread] = []

    def is_cancelled() -> bool:
        asked.append(threading.current_thread())
        return False

    request = Request(Vfm(0, "one"), {}, (), 0.0, lambda reply, final: None, is_cancelled=is_cancelled, lane=2)
    for _ in range(2):
        rig.service.replies.post(request, partial(rig.service.cancellation._ask, request))
        rig.service.replies.put(request, Failed(ExecutionFailed("an answer")))
    done = threading.Event()
    rig.service.replies.post_last(done.set)
    assert done.wait(20)
    assert request.resolved
    assert [thread.name for thread in asked] == ["fmplex-reply-2"]


def broken_handle() -> bool:
    raise RuntimeError("the server has let go of this request")
