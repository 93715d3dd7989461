"""A group on a whole backbone: a request of each of its tasks, one reply, and what comes of changes on disk."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import BACKBONE, FakeModels, bytes_of, edit, group_outputs, write_group, write_task
from service_fixtures import Gate, ServiceRig, until

from fmplex_backend.serving import cancellation
from fmplex_backend.serving.intake import Call
from fmplex_backend.serving.table import Group
from fmplex_backend.status import BackboneStatus, TaskStatus
from fmplex_backend.types import Answer, Reply, Vfm

TAG = 9
ASKS = group_outputs(0, 1)
FULL = "has 1 requests waiting"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two tasks and the group `both`."""
    write_task(tmp_path, "one", 0, task={"mark": 1})
    write_task(tmp_path, "two", 1, task={"mark": 2})
    write_group(tmp_path, "both", TAG, {"two": 1, "one": 0}, slo_ms=5000)
    return tmp_path


def ask(rig: ServiceRig, text: str = "some words", **options: Any) -> Reply:
    return rig.ask(TAG, text=text, **{"asks": ASKS} | options)


def failure(rig: ServiceRig, **options: Any) -> tuple[str, str]:
    return rig.failure(TAG, **{"asks": ASKS} | options)


def tensors(reply: Reply) -> dict[str, Any]:
    assert isinstance(reply, Answer), reply
    return dict(reply.tensors)


def errors(reply: Reply) -> list[str]:
    return [text.decode() for text in tensors(reply)["ERRORS"][0]]


def vfm(rig: ServiceRig, tag: int) -> Vfm:
    found = rig.service.loader.table[tag]
    assert isinstance(found, Vfm)
    return found


def statuses(rig: ServiceRig, name: str) -> tuple[TaskStatus, ...]:
    """Once the repository has been read; of a task that is still to be loaded there is none."""
    replies: list[Reply] = []
    call = Call({"TASK": bytes_of(name)}, ["STATUS"], {}, lambda reply, final: replies.append(reply))
    rig.service.submit(call)
    until(lambda: bool(replies))
    return BackboneStatus.model_validate_json(tensors(replies[0])["STATUS"].item()).tasks


def status(rig: ServiceRig, name: str) -> TaskStatus:
    (task,) = statuses(rig, name)
    return task


def test_one_call_is_a_request_of_each_task(rig: ServiceRig) -> None:
    found = tensors(ask(rig))
    assert found["0.EMBEDDING"].tolist() == [[2, 1]]
    assert found["1.EMBEDDING"].tolist() == [[2, 2]]
    assert found["ERRORS"].tolist() == [[b"", b""]]
    assert found["MEMBER_0"].shape == (1, 3)
    assert [vfm(rig, tag).engine.requests for tag in (0, 1)] == [1, 1]
    assert all(vfm(rig, tag).service > 0 for tag in (0, 1))


def test_its_requests_are_in_one_batch(root: Path, gate: Gate) -> None:
    """Also where the engine waits for work: it is told of all of them at once."""
    rig = ServiceRig(root, gate)
    rig.service.start()
    rig.submit(TAG, asks=ASKS)
    gate.wait()
    gate.free()
    rig.caller.wait()
    assert rig.service.engine.counts.batches == 1
    assert tensors(rig.caller.only())["MEMBER_0"][0, 2] == 2  # batch_items
    rig.stop()


def test_its_requests_have_one_deadline(root: Path, gate: Gate) -> None:
    write_task(root, "one", 0, task={"mark": 1}, slo_ms=7.0)
    rig = ServiceRig(root, gate, max_items=1)
    rig.service.start()
    for parameters, slo in (({}, 5.0), ({"slo_ms": "250"}, 0.25)):
        rig.submit(TAG, asks=ASKS, parameters=parameters)
        gate.wait()
        (waiting,) = [request for each in (0, 1) for request in vfm(rig, each).queue]
        assert waiting.slo_s == slo  # the group's, or the call's, and not its own
        gate.step()
        gate.wait()
        gate.step()
        rig.caller.wait()
    gate.free()
    rig.stop()


def test_a_bad_wish_is_refused_once(rig: ServiceRig) -> None:
    code, text = failure(rig, parameters={"slo_ms": "soon"})
    assert (code, "slo_ms is 'soon'" in text, "no task of" in text) == ("INVALID_ARG", True, False)
    assert [vfm(rig, tag).failures() for tag in (0, 1)] == [{}, {}]
    assert status(rig, "both").failures == {"invalid": 1}


@pytest.mark.parametrize("text", ["refuse", "crash", "fail", "undecodable"])
def test_what_fails_for_all_is_an_error(rig: ServiceRig, text: str) -> None:
    code, said = failure(rig, text=text)
    assert code == ("INVALID_ARG" if text == "refuse" else "INTERNAL")
    assert said.startswith("no task of 'both' answers: ")


def test_a_full_queue_is_one_tasks_error(root: Path, gate: Gate) -> None:
    write_task(root, "one", 0, task={"mark": 1}, max_queue=1)
    rig = ServiceRig(root, gate, max_items=1)
    rig.service.start()
    rig.submit(0)
    gate.wait()
    rig.submit(0)
    number = rig.submit(TAG, asks=ASKS)
    gate.free()
    rig.caller.wait()
    two, one = errors(rig.caller.only(number))
    assert two == ""
    assert one.startswith("[UNAVAILABLE] 'one' has 1 requests waiting")
    assert tensors(rig.caller.only(number))["0.EMBEDDING"].shape == (1, 0)
    assert vfm(rig, 0).intake.failures == {"queue_full": 1}
    rig.stop()


def test_a_refused_task_is_told_and_the_others_answer(rig: ServiceRig, root: Path) -> None:
    edit(root / "one" / "config.pbtxt", "TRUNCATED", "TRUNKATED")
    until(lambda: status(rig, "one").state == "refused")
    two, one = errors(ask(rig))
    assert (two, "TRUNKATED" in one) == ("", True)
    assert "TRUNKATED" in status(rig, "both").error
    assert status(rig, "one").failures == {"refused": 1}


def test_a_task_that_is_removed_and_comes_back(rig: ServiceRig, root: Path) -> None:
    shutil.move(root / "one", root.parent / "aside")
    until(lambda: any(errors(ask(rig))))
    two, one = errors(ask(rig))
    assert two == ""
    assert f"{root}/both/config.pbtxt: parameters.group: 'one' is asked by VFM_0, and no task has it" in one
    assert f"fmplex group create both two one --replace --repository {root}" in one
    assert "'one' is asked by VFM_0" in status(rig, "both").error
    assert status(rig, "both").state == "serving"
    shutil.move(root.parent / "aside", root / "one")
    until(lambda: not any(errors(ask(rig))))
    assert status(rig, "both").error == ""


def test_another_task_with_the_tag_of_one_does_not_answer_for_it(rig: ServiceRig, root: Path) -> None:
    (root / "one").rename(root / "renamed")
    edit(root / "renamed" / "config.pbtxt", 'name: "one"', 'name: "renamed"')
    until(lambda: [task.state for task in statuses(rig, "renamed")] == ["serving"])
    two, one = errors(ask(rig))
    assert (two, "'one' is asked by VFM_0, and 'renamed' has it" in one) == ("", True)


def test_where_none_is_left_it_is_an_error(rig: ServiceRig, root: Path) -> None:
    shutil.rmtree(root / "one")
    shutil.rmtree(root / "two")
    until(lambda: not {0, 1} & rig.service.loader.table.keys())
    code, text = failure(rig)
    assert (code, text.count("no task has it")) == ("INTERNAL", 2)


def test_an_entry_that_the_server_has_not_loaded_yet(rig: ServiceRig, root: Path) -> None:
    """The server sends requests by the one before: they say so by the tasks they ask for, and are answered by it."""
    write_task(root, "three", 2, task={"mark": 3})
    write_group(root, "both", TAG, {"three": 2, "one": 0})
    until(lambda: status(rig, "both").members == ("three", "one"))
    assert tensors(ask(rig))["1.EMBEDDING"].tolist() == [[2, 2]]
    assert tensors(ask(rig, asks=group_outputs(0, 2)))["1.EMBEDDING"].tolist() == [[2, 3]]
    code, text = failure(rig, asks=group_outputs(0, 1, 2))
    assert (code, "the entry of the group 'both' is not the one that the server has loaded" in text) == (
        "UNAVAILABLE",
        True,
    )
    assert failure(rig, asks=())[0] == "UNAVAILABLE"
    assert status(rig, "both").failures == {"group_changed": 2}


def test_a_request_by_an_entry_that_was_not_seen_here_yet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ServiceRig(root)
    monkeypatch.setattr(rig.service.watch, "follow_forever", lambda: None)
    rig.service.start()
    assert isinstance(ask(rig), Answer)
    write_task(root, "three", 2, task={"mark": 3})
    write_group(root, "both", TAG, {"three": 2, "one": 0})
    assert tensors(ask(rig, asks=group_outputs(0, 2)))["1.EMBEDDING"].tolist() == [[2, 3]]
    rig.stop()


def test_a_member_that_is_still_to_be_loaded_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's entry may have been read, and the member's version not yet."""
    rig = ServiceRig(root)
    for forever in ("follow_forever", "settle_forever"):
        monkeypatch.setattr(rig.service.watch, forever, lambda: None)
    rig.service.start()
    write_task(root, "three", 2, task={"mark": 3})
    write_group(root, "both", TAG, {"three": 2, "one": 0})
    rig.service.loader.settle()
    assert 2 not in rig.service.loader.table
    assert tensors(ask(rig, asks=group_outputs(0, 2)))["1.EMBEDDING"].tolist() == [[2, 3]]
    rig.stop()


def test_a_group_that_is_removed_is_unknown_soon(rig: ServiceRig, root: Path) -> None:
    shutil.rmtree(root / "both")
    until(lambda: TAG not in rig.service.loader.table)
    code, text = failure(rig)
    assert (code, f"VFM_{TAG} is no task's tag" in text) == ("INVALID_ARG", True)


def test_a_group_with_another_tag_is_answered_by_both_for_a_time(root: Path) -> None:
    rig = ServiceRig(root, models=FakeModels())
    rig.service.loader.groups.grace = 30.0
    rig.service.start()
    assert isinstance(ask(rig), Answer)
    write_group(root, "both", 11, {"two": 1, "one": 0})
    until(lambda: 11 in rig.service.loader.table)
    assert status_of_leaving(rig) == ["both"]
    for tag in (TAG, 11):
        assert isinstance(rig.ask(tag, asks=ASKS), Answer)
    rig.stop()


def status_of_leaving(rig: ServiceRig) -> list[str]:
    return [each.name for each in rig.service.loader.standings if each.state == "leaving"]


def test_of_a_group_and_a_task_with_one_tag_the_one_that_serves_keeps_it(rig: ServiceRig, root: Path) -> None:
    write_group(root, "copy", 0, {"one": 0, "two": 1})
    until(lambda: status(rig, "copy").state == "refused")
    assert f"VFM_0 on {BACKBONE!r} is the tag of 'one', which keeps it" in status(rig, "copy").error
    assert isinstance(rig.ask(0), Answer)
    write_task(root, "late", TAG)
    until(lambda: status(rig, "late").state == "refused")
    assert isinstance(ask(rig), Answer)


def test_a_group_whose_entry_breaks_is_refused_under_its_tag(rig: ServiceRig, root: Path) -> None:
    edit(root / "both" / "config.pbtxt", 'key: "ERRORS"', 'key: "STATUS"')
    until(lambda: status(rig, "both").state == "refused")
    code, text = failure(rig)
    assert (code, "ERRORS is missing" in text) == ("INTERNAL", True)


def test_a_group_that_takes_the_name_of_a_task(rig: ServiceRig, root: Path) -> None:
    shutil.rmtree(root / "two")
    write_group(root, "two", 1, {"one": 0})
    until(lambda: isinstance(rig.service.loader.table.get(1), Group))
    found = tensors(rig.ask(1, asks=group_outputs(0)))
    assert found["0.EMBEDDING"].tolist() == [[2, 1]]


def test_the_end_answers_what_waits(root: Path, gate: Gate) -> None:
    rig = ServiceRig(root, gate, max_items=1)
    rig.service.start()
    for _ in range(5):
        rig.submit(TAG, asks=ASKS)
    gate.wait()
    gate.free()
    rig.stop()
    assert rig.codes() == [""] * 5
    assert failure(rig)[0] == "UNAVAILABLE"


def test_whatever_is_raised_on_the_way_is_answered_once(rig: ServiceRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(requests: Any) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(rig.service.preparation, "submit_together", broken)
    assert failure(rig) == ("INTERNAL", "preparing the request raised KeyError: 'odd'")


def test_a_cancelled_call_runs_for_none(root: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "PERIOD_S", 0.02)
    rig = ServiceRig(root, gate, max_items=1)
    posted, post = Counter[str](), rig.service.engine.post

    def posting(command: Any) -> None:
        post(command)
        posted[getattr(command, "func", command).__name__] += 1

    monkeypatch.setattr(rig.service.engine, "post", posting)
    rig.service.start()
    for tag in (0, 1, 0, 1, 0, 1, 0, 1):
        rig.submit(tag)
    gate.wait()
    number = rig.submit(TAG, asks=ASKS, is_cancelled=lambda: True)
    sent = rig.service.engine.clock()
    until(lambda: rig.service.engine.clock() > sent + 2 * cancellation.PERIOD_S)
    gate.step()
    gate.wait()
    until(lambda: posted["_find_waiting"] == 1)
    gate.step()
    gate.wait()
    until(lambda: posted["cancel"] == 2)  # one for each task
    gate.free()
    rig.caller.wait()
    assert rig.caller.failure(number)[0] == "CANCELLED"
    assert [vfm(rig, tag).failures() for tag in (0, 1)] == [{"cancelled": 1}] * 2
    rig.stop()


def test_receipts_are_whole_numbers(rig: ServiceRig) -> None:
    reply = ask(rig)
    assert isinstance(reply, Answer)
    assert reply.usage.batch_items == 2
    assert reply.tensors["MEMBER_1"].dtype == np.int64
