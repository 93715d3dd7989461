"""How a call becomes a request: by its tag, its wishes and the place in its queue, or is refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import FakeModels, edit, write_task
from fake_family.runtime import FakeClock
from service_fixtures import Gate, ServiceRig, until

from fmplex_backend.types import Answer


def test_the_same_tag_twice_is_one_tag(rig: ServiceRig) -> None:
    assert isinstance(rig.ask(0, 0), Answer)


def test_whatever_is_raised_on_the_way_is_answered(rig: ServiceRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a tag that is looked up first, which is done on another thread."""

    def broken(*arguments: Any) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(rig.service.intake, "_enter", broken)
    assert rig.failure(0) == ("INTERNAL", "preparing the request raised KeyError: 'odd'")
    write_task(rig.root, "five", 5)
    assert rig.failure(5) == ("INTERNAL", "preparing the request raised KeyError: 'odd'")


def test_of_requests_that_come_together_it_is_asked_once_whose_a_tag_is(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    found = rig.service.intake.ownership.doubts

    def doubts(claims: Sequence[tuple[str, int]]) -> set[str]:
        asked.extend(claims)
        return found(claims)

    monkeypatch.setattr(rig.service.intake.ownership, "doubts", doubts)
    for _ in range(2):
        rig.service.submit(*[rig.caller.call((tag,)) for tag in (0, 1, 0, 0)])
    rig.caller.wait()
    assert asked == [("one", 0), ("two", 1)] * 2
    assert rig.codes() == [""] * 8


# -- tags


def test_no_tag(rig: ServiceRig) -> None:
    code, text = rig.failure()
    assert code == "INVALID_ARG"
    assert "'base' is a backbone" in text
    assert "call a task instead: one, two" in text


def test_two_tags(rig: ServiceRig) -> None:
    code, text = rig.failure(0, 1)
    assert (code, "2 tasks' tags" in text, "one, two" in text) == ("INVALID_ARG", True, True)


def test_an_unknown_tag(rig: ServiceRig) -> None:
    code, text = rig.failure(5)
    assert code == "INVALID_ARG"
    assert "VFM_5 is no task's tag" in text
    assert "call a task instead: one, two" in text
    assert rig.service.intake.counts.failures == {"invalid": 1}


def test_an_unknown_tag_is_logged_once_a_minute_and_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, clock = ServiceRig(tmp_path), FakeClock(0.0)
    monkeypatch.setattr(rig.service.intake, "clock", clock)
    rig.service.start()
    for seconds, lines in ((0, 1), (59, 1), (1, 2)):
        clock.sleep(seconds)
        for _ in range(10):
            assert rig.failure(5)[0] == "INVALID_ARG"
        said = [record for record in caplog.records if "VFM_5" in record.message]
        assert len(said) == lines
        assert not any(record.exc_info for record in caplog.records)
    rig.stop()


def test_a_request_for_a_tag_that_has_another_task_now_is_not_answered_by_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have loaded the new one before the watch has seen it."""
    write_task(tmp_path, "one", 0, task={"mark": 1})
    rig = ServiceRig(tmp_path)
    monkeypatch.setattr(rig.service.watch, "follow_forever", lambda: None)
    rig.service.start()
    assert isinstance(rig.ask(0), Answer)
    shutil.rmtree(tmp_path / "one")
    write_task(tmp_path, "new", 0, task={"mark": 9})
    rig.ask(0)
    assert rig.caller.answer().tensors["EMBEDDING"].tolist() == [[2, 9]]
    rig.stop()


def test_a_contested_tag_is_refused_until_it_is_one_tasks(tmp_path: Path) -> None:
    write_task(tmp_path, "one", 0, task={"mark": 1})
    models = FakeModels()
    rig = ServiceRig(tmp_path, models=models)
    rig.service.start()
    assert isinstance(rig.ask(0), Answer)
    models.loaded = {"one", "new"}
    shutil.rmtree(tmp_path / "one")
    write_task(tmp_path, "new", 0, task={"mark": 9})
    code, text = rig.failure(0)
    assert code == "UNAVAILABLE"
    assert "VFM_0 is the tag of 'new', and requests of 'one' may come with it too" in text
    models.loaded = {"new"}
    until(lambda: isinstance(rig.ask(0), Answer))  # without a change on disk
    assert rig.caller.answer().tensors["EMBEDDING"].tolist() == [[2, 9]]
    rig.stop()


class SlowModels(FakeModels):
    """A server that answers the thread which asks for requests when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for_requests, self.may_answer = 0, threading.Event()

    def is_loaded(self, name: str) -> bool:
        if threading.current_thread().name == "fmplex-asks":
            self.asked_for_requests += 1
            assert self.may_answer.wait(20)
        return super().is_loaded(name)


def test_a_server_that_is_slow_to_answer_holds_up_no_other_task(tmp_path: Path) -> None:
    """And it is asked once for all requests that have come by then."""
    write_task(tmp_path, "one", 0, task={"mark": 1})
    write_task(tmp_path, "two", 1, task={"mark": 2})
    models = SlowModels()
    rig = ServiceRig(tmp_path, models=models)
    rig.service.start()
    write_task(tmp_path, "new", 0, task={"mark": 9})
    until(lambda: 0 in rig.service.loader.tags.newcomers)
    rig.submit(0)
    until(lambda: models.asked_for_requests == 1)
    for _ in range(3):
        rig.submit(0)
    other = rig.submit(1)
    until(lambda: bool(rig.caller.replies[other]))
    assert [len(replies) for replies in rig.caller.replies] == [0, 0, 0, 0, 1]
    models.may_answer.set()
    rig.caller.wait()
    answers = [rig.caller.answer(number) for number in range(5)]
    assert [answer.tensors["EMBEDDING"].tolist() for answer in answers] == 4 * [[[2, 1]]] + [[[2, 2]]]
    assert models.asked_for_requests == 2
    rig.stop()


def test_an_empty_repository_says_so(tmp_path: Path) -> None:
    rig = ServiceRig(tmp_path)
    rig.service.start()
    assert "(none is in the repository)" in rig.failure(0)[1]
    rig.stop()


def test_an_unknown_tag_is_looked_for_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton may know of a task before the watch has seen it."""
    rig = ServiceRig(tmp_path)
    monkeypatch.setattr(rig.service.watch, "follow_forever", lambda: None)
    rig.service.start()
    write_task(tmp_path, "late", 3, task={"mark": 9})
    rig.ask(3)
    assert rig.caller.answer().tensors["EMBEDDING"].tolist() == [[2, 9]]
    vfm: Any = rig.service.loader.table[3]
    rig.ask(3)
    assert vfm.depth == 0
    rig.stop()


def test_a_refused_task(rig: ServiceRig) -> None:
    write_task(rig.root, "bad", 4, max_queue=3)
    edit(rig.root / "bad" / "config.pbtxt", '"3"', '"none"')
    code, text = rig.failure(4)
    assert code == "INTERNAL"
    assert text.startswith(str(rig.root / "bad" / "config.pbtxt"))


def test_a_task_that_goes(rig: ServiceRig) -> None:
    assert isinstance(rig.ask(0), Answer)
    shutil.rmtree(rig.root / "one")
    rig.service.loader.refresh()
    assert rig.failure(0)[0] == "INVALID_ARG"
    assert isinstance(rig.ask(1), Answer)


# -- requests that are wrong


@pytest.mark.parametrize("wish", [0, -1, "soon", "", "nan", "inf", float("nan"), [], {}, 10**400])
def test_a_bad_slo(rig: ServiceRig, wish: Any) -> None:
    code, text = rig.failure(0, parameters={"slo_ms": wish})
    assert code == "INVALID_ARG"
    assert "slo_ms" in text


@pytest.mark.parametrize("wish", [1, 2.5, "30", None])
def test_a_good_slo(rig: ServiceRig, wish: Any) -> None:
    assert isinstance(rig.ask(0, parameters={"slo_ms": wish, "other": 1}), Answer)


def test_a_deadline_that_cannot_be_kept_is_counted(rig: ServiceRig) -> None:
    rig.ask(0, parameters={"slo_ms": 1e-9})
    vfm: Any = rig.service.loader.table[0]
    assert vfm.engine.misses == 1


# -- full queues


def test_a_full_queue_refuses_at_once(gated: ServiceRig, gate: Gate) -> None:
    gated.submit(0)
    gate.wait()
    for _ in range(3):
        gated.submit(0)
    code, text = gated.failure_now(0)
    assert code == "UNAVAILABLE"
    assert "'one' has 3 requests waiting, its max_queue is 3" in text
    gated.submit(1)
    gate.free()
    gated.caller.wait()
    assert gated.codes() == ["", "", "", "", "UNAVAILABLE", ""]


def test_the_backbones_bound_is_that_of_tasks_without_their_own(gated: ServiceRig, gate: Gate) -> None:
    gated.submit(1)
    gate.wait()
    for _ in range(5):
        gated.submit(1)
    assert gated.failure_now(1)[0] == "UNAVAILABLE"
