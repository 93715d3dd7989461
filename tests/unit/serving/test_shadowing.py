"""Shadows of a whole backbone: copies of what was answered, compared; whatever they do, clients notice nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import TextStandIn, text_task, write_config, write_group, write_task, write_version
from service_fixtures import Gate, ServiceRig, until

from fmplex_backend.serving import shadowing
from fmplex_backend.serving.candidates import Candidate
from fmplex_backend.types import Answer, Request, Vfm

SHADOW = {"shadow_version": "2"}


def version(mark: float) -> dict[str, Any]:
    return text_task({"kind": "embedding"}, metrics={"mark": mark})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_task(tmp_path, "one", 0, task=version(1), serves=1, parameters=SHADOW)
    write_version(tmp_path, "one", 2, version(1))
    write_task(tmp_path, "two", 1, task=version(5))
    return tmp_path


def shadow_of(rig: ServiceRig) -> Candidate:
    task = rig.service.loader.table[0]
    assert isinstance(task, Vfm)
    shadow = rig.service.loader.candidates.beside[task].shadow
    assert shadow is not None
    return shadow


def mark(reply: object) -> float:
    assert isinstance(reply, Answer), reply
    return float(reply.tensors["EMBEDDING"][0, 1])


def test_answers_are_compared(rig: ServiceRig) -> None:
    compared = shadow_of(rig).compared
    assert mark(rig.ask(0)) == 1
    until(lambda: compared.requests == 1)
    assert (compared.items, compared.agreed, compared.failures, compared.dropped) == (1, 1, {}, 0)
    rig.ask(1)
    assert compared.requests == 1, "the other task's are not copied"


def test_answers_that_differ(root: Path, rig: ServiceRig) -> None:
    write_version(root, "one", 2, version(-50))
    rig.service.loader.refresh()
    compared = shadow_of(rig).compared
    assert mark(rig.ask(0)) == 1
    until(lambda: compared.requests == 1)
    assert compared.agreed == 0


def test_what_a_shadow_was_charged_is_the_tasks_and_sums_to_busy_time(rig: ServiceRig) -> None:
    for _ in range(3):
        rig.ask(0)
        rig.ask(1)
    until(lambda: shadow_of(rig).compared.requests == 3)
    status = rig.service.reporter.status()
    one, two = status.tasks
    (told,) = one.candidates
    assert (told.role, told.version, told.compared, told.agreed, told.agreement) == ("shadow", 2, 3, 3, 1.0)
    assert (told.requests, one.requests, told.served_requests) == (3, 3, 3)
    assert one.service_s + two.service_s + told.service_s == pytest.approx(status.busy_s)
    assert told.account not in (one.account, two.account, None)


def test_a_groups_answers_are_compared_too(root: Path) -> None:
    write_group(root, "both", 5, {"one": 0, "two": 1})
    rig = ServiceRig(root)
    rig.service.start()
    from backend_fixtures import group_outputs

    rig.ask(5, asks=group_outputs(0, 1))
    until(lambda: shadow_of(rig).compared.agreed == 1)
    rig.stop()


def test_a_canary_answers_and_is_not_compared(root: Path, rig: ServiceRig) -> None:
    write_version(root, "one", 3, version(3))
    canary = {"canary_version": "3", "canary_share": "0.5"}
    write_config(root, "one", 0, serves=1, parameters=SHADOW | canary)
    rig.service.loader.refresh()
    marks = [mark(rig.ask(0, request_id=f"r{number}")) for number in range(20)]
    again = [mark(rig.ask(0, request_id=f"r{number}")) for number in range(20)]
    assert marks == again
    assert sorted(set(marks)) == [1, 3]
    until(lambda: shadow_of(rig).compared.requests + shadow_of(rig).compared.dropped == 2 * marks.count(1))
    (one, _) = rig.service.reporter.status().tasks
    canary_status, _ = one.candidates
    assert canary_status.requests == 2 * marks.count(3)
    assert one.requests == canary_status.served_requests == 2 * marks.count(1)
    assert canary_status.share == 0.5
    assert one.weight == 1.0


# -- what a shadow must not do


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("prepare", ValueError("odd")),
        ("prepare", SystemExit("odd")),
        ("decode", ValueError("odd")),
        ("decode", SystemExit("odd")),
    ],
)
def test_whatever_its_code_raises_clients_notice_nothing(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException
) -> None:
    runtime, compared = rig.service.runtime, shadow_of(rig).compared
    genuine = getattr(runtime, method)

    def raising(request: Request, *rest: Any) -> Any:
        if request.vfm.spare:
            raise error
        return genuine(request, *rest)

    monkeypatch.setattr(runtime, method, raising)
    for _ in range(3):
        assert mark(rig.ask(0)) == 1
    until(lambda: sum(compared.failures.values()) == 3)
    assert compared.failures == {"execution": 3}
    monkeypatch.undo()
    assert mark(rig.ask(0)) == 1
    until(lambda: compared.requests == 1)


def test_a_shadow_that_hangs_holds_up_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "JOIN_S", 0.01)
    hangs = threading.Event()
    rig = ServiceRig(root)
    rig.service.start()
    genuine = rig.service.runtime.decode

    def hanging(request: Request, value: Any) -> Any:
        if request.vfm.spare:
            hangs.wait(20)
        return genuine(request, value)

    monkeypatch.setattr(rig.service.runtime, "decode", hanging)
    for _ in range(2 * shadowing.MOST_COPIES):
        assert mark(rig.ask(0)) == 1
    assert shadow_of(rig).compared.dropped >= shadowing.MOST_COPIES - 1
    rig.stop()
    hangs.set()


def test_no_copies_while_there_is_no_spare_time(root: Path, gate: Gate) -> None:
    """The engine is held in a pass: copies wait, and further ones are not made."""
    rig = ServiceRig(root, gate, max_items=1)
    rig.service.start()
    shadow = shadow_of(rig)
    total = 3 * shadowing.MOST_COPIES
    for _ in range(total):
        rig.submit(0)
    for _ in range(total):
        gate.wait()
        gate.step()
    rig.caller.wait()
    assert shadow.compared.requests <= 2, "others came first"
    assert shadow.compared.dropped >= total - shadowing.MOST_COPIES - 2
    gate.free()
    until(lambda: shadow.compared.requests + shadow.compared.dropped == total)
    rig.stop()


def test_large_inputs_are_not_kept_twice_without_end(rig: ServiceRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "MOST_BYTES", 100)
    rig.ask(0, text="word " * 50)
    rig.ask(0, text="word")
    until(lambda: shadow_of(rig).compared.requests == 1)
    assert shadow_of(rig).compared.dropped == 1


def test_inputs_are_as_they_came(rig: ServiceRig) -> None:
    """They are not the server's memory: a copy of them would cost the request time, and be of no use."""
    numbers, sent = np.ones((1, 2), dtype=np.float32), []
    runtime_inputs: list[Any] = []
    copying = rig.service.shadowing.copying(shadow_of(rig), {"X": numbers}, 8, {}, lambda *reply: sent.append(reply))
    prepare = rig.service.runtime.prepare

    def seen(request: Request) -> None:
        runtime_inputs.append(request.inputs["X"])
        prepare(request)

    rig.service.runtime.prepare = seen  # type: ignore[method-assign]
    copying(Answer({}, None), True)  # type: ignore[arg-type]
    until(lambda: bool(runtime_inputs))
    assert runtime_inputs[0] is numbers
    assert len(sent) == 1


def test_a_failed_request_is_not_copied(rig: ServiceRig) -> None:
    rig.failure(0, text="fail")
    rig.ask(0)
    until(lambda: shadow_of(rig).compared.requests == 1)
    assert shadow_of(rig).compared.failures == {}


def test_stopping_does_not_wait_for_copies(root: Path) -> None:
    rig = ServiceRig(root)
    rig.service.start()
    for _ in range(10):
        rig.submit(0)
    rig.stop()
    assert isinstance(rig.service.runtime, TextStandIn)


def test_a_canary_may_answer_in_parts(root: Path) -> None:
    """Language models may have canaries: nothing but the vFM is another one."""
    write_version(root, "one", 3, version(3))
    write_config(root, "one", 0, serves=1, parameters={"canary_version": "3", "canary_share": "0.5"})
    rig = ServiceRig(root)
    rig.service.start()
    for number in range(8):
        rig.ask(0, text="stream steps=3 a b", request_id=f"r{number}")
    marks = [mark(replies[0]) for replies in rig.caller.replies]
    assert sorted(set(marks)) == [1, 3]
    for parts, own in zip(rig.caller.parts, marks, strict=True):
        assert [mark(part) for part in parts] == [own, own]
    rig.stop()
