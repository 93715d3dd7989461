"""A backbone's status: what it says of each task, and that it is said whatever the engine does."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import FakeModels, bytes_of, write_config, write_task, write_version
from service_fixtures import Gate, ServiceRig, until

from fmplex_backend.serving.batch import AtWork
from fmplex_backend.serving.intake import Call
from fmplex_backend.serving.prefetching import KEPT_S
from fmplex_backend.status import BackboneStatus, TaskStatus
from fmplex_backend.types import MAX_QUEUE_BYTES, Answer, Failed, Reply


class Asked:
    """A request for the status, and its one reply."""

    def __init__(self, rig: ServiceRig, cells: Any, **parameters: str) -> None:
        self.replies: list[Reply] = []
        rig.service.submit(Call({"TASK": cells}, ["STATUS"], parameters, self._reply))

    def _reply(self, reply: Reply, final: bool) -> None:
        assert final
        self.replies.append(reply)

    def status(self) -> BackboneStatus:
        until(lambda: bool(self.replies))
        (reply,) = self.replies
        assert isinstance(reply, Answer), reply
        return BackboneStatus.model_validate_json(reply.tensors["STATUS"].item())


def status(rig: ServiceRig, name: str = "") -> BackboneStatus:
    return Asked(rig, bytes_of(name)).status()


def only(rig: ServiceRig, name: str) -> TaskStatus:
    """One task, once the repository has been read."""
    (task,) = status(rig, name).tasks
    return task


def test_a_backbone_and_its_tasks(rig: ServiceRig) -> None:
    for _ in range(3):
        rig.ask(0)
    rig.failure(0, parameters={"slo_ms": "soon"})
    rig.failure(9)
    found = status(rig)
    assert (found.name, found.model, found.scheduler, found.slots) == ("base", "none", "bfq", 256)
    assert found.dtype == rig.service.runtime.dtype == "float32"  # its config says auto
    assert (found.batches, found.queued, found.running, found.running_s) == (3, 0, 0, 0.0)
    assert found.failures == {"invalid": 1}
    assert found.last_batch_s is not None
    assert 0 <= found.last_batch_s <= found.up_s
    one, two = found.tasks
    assert (one.name, one.backbone, one.tag, one.state, one.version) == ("one", "base", 0, "serving", 1)
    assert (one.weight, one.slo_ms, one.max_queue, one.error) == (1.0, None, 1024, "")
    assert one.max_queue_bytes == MAX_QUEUE_BYTES
    assert (one.requests, one.queued, one.failures) == (3, 0, {"invalid": 1})
    assert one.service_s > 0
    assert (two.name, two.requests, two.service_s) == ("two", 0, 0.0)
    assert one.healthy
    assert found.busy_s == pytest.approx(one.service_s)
    assert (found.items, one.items, one.misses, one.queue_bytes) == (3, 3, 0, 0)
    assert abs(found.started_at + found.up_s - time.time()) < 1
    assert one.account != two.account


def test_what_a_canary_answers_is_told_of_it_and_added_up(rig: ServiceRig, tmp_path: Path) -> None:
    kind = {"decoder": {"kind": "embedding"}}
    write_task(tmp_path, "tried", 4, task=kind)
    write_version(tmp_path, "tried", 2, kind)
    parameters = {"canary_version": "2", "canary_share": "0.5"}
    write_config(tmp_path, "tried", 4, serves=1, cache=True, parameters=parameters)
    only(rig, "tried")
    for number in range(20):
        rig.ask(4, text=f"some words {number}")
    found = only(rig, "tried")
    (canary,) = found.candidates
    assert found.with_canary.requests == 20 == found.with_canary.cache_misses
    assert 0 < canary.requests < 20
    assert canary.cache_misses == canary.requests
    assert canary.tokens > 0
    assert found.with_canary.tokens == found.tokens + canary.tokens


def test_terms_and_account_are_the_tasks_as_a_whole(
    rig: ServiceRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"decoder": {"kind": "embedding"}}
    write_task(tmp_path, "tried", 4, task=kind)
    write_version(tmp_path, "tried", 2, kind)
    parameters = {"canary_version": "2", "canary_share": "0.3", "max_running": "1", "max_kv_share": "0.7"}
    write_config(tmp_path, "tried", 4, serves=1, weight=3.0, parameters=parameters)
    monkeypatch.setattr(rig.service.engine.scheduler, "ahead_s", lambda vfm: 0.25)
    found = only(rig, "tried")
    assert (found.weight, found.max_running, found.max_kv_share) == (3.0, 1, 0.7)
    assert (found.ahead_s, only(rig, "one").ahead_s) == (0.5, 0.25)


def test_what_a_removed_task_was_charged_is_still_told(rig: ServiceRig, tmp_path: Path) -> None:
    rig.ask(0)
    before = only(rig, "one")
    shutil.rmtree(tmp_path / "one")
    until(lambda: "one" not in {task.name for task in status(rig).tasks})
    until(lambda: bool(status(rig).closed))
    (closed,) = status(rig).closed
    assert (closed.task, closed.account, closed.requests) == ("one", before.account, 1)
    assert closed.service_s == pytest.approx(status(rig).busy_s)
    write_task(tmp_path, "one", 0)
    assert only(rig, "one").account not in (None, before.account)
    assert not status(rig, "one").closed


def test_a_refused_task_says_why_and_counts(rig: ServiceRig, tmp_path: Path) -> None:
    write_config(tmp_path, "half", 5)
    half = only(rig, "half")
    assert (half.tag, half.state, half.version) == (5, "refused", None)
    assert "there is no such version directory" in half.error
    rig.failure(5)
    assert only(rig, "half").failures == {"refused": 1}
    write_version(tmp_path, "half", 1, {})
    assert only(rig, "half").state == "serving"


def test_an_entry_that_cannot_be_read_has_no_tag(rig: ServiceRig, tmp_path: Path) -> None:
    write_config(tmp_path, "torn", 5).write_text('"base" {')
    torn = only(rig, "torn")
    assert (torn.tag, torn.state) == (None, "refused")
    assert "not a Triton model configuration" in torn.error


def test_a_name_that_is_no_utf_8_is_written_out(rig: ServiceRig, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"x\xff")
    odd.mkdir()
    (odd / "config.pbtxt").write_text('"base" {')
    rig.service.loader.refresh()
    assert "x\\xff" in [task.name for task in status(rig).tasks]
    assert only(rig, "x\\xff").state == "refused"


def test_a_status_that_cannot_be_told_is_an_error_of_that_request(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(name: str) -> BackboneStatus:
        raise RuntimeError("torn")

    monkeypatch.setattr(rig.service.reporter, "status", told)
    for name in ("", "one"):
        asked = Asked(rig, bytes_of(name))
        until(lambda asked=asked: bool(asked.replies))  # type: ignore[misc]
        (reply,) = asked.replies
        assert isinstance(reply, Failed)
        assert (reply.error.code, "torn" in str(reply.error)) == ("INTERNAL", True)
    rig.ask(0)


def test_a_refused_version_leaves_the_former_one_serving(rig: ServiceRig, tmp_path: Path) -> None:
    write_version(tmp_path, "one", 2, {})
    (tmp_path / "one" / "2" / "task.json").write_text("{")
    one = only(rig, "one")
    assert (one.state, one.version) == ("serving former version", 1)
    assert "2/task.json" in one.error
    assert not one.healthy


def test_extensions_that_cannot_be_attached_are_a_refusal(
    rig: ServiceRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(extensions: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(rig.service.runtime, "attach", attach)
    write_task(tmp_path, "large", 4)
    assert only(rig, "large").tag == 4
    until(lambda: only(rig, "large").state == "refused")
    assert "no room" in only(rig, "large").error


def test_a_task_that_was_removed_is_leaving(rig: ServiceRig, tmp_path: Path) -> None:
    rig.service.loader.tasks.grace = 100.0
    (tmp_path / "two").rename(tmp_path.parent / f"{tmp_path.name}-two")
    assert only(rig, "two").state == "leaving"


def test_a_name_that_no_task_has(rig: ServiceRig) -> None:
    assert status(rig, "nobody").tasks == ()


@pytest.mark.parametrize("cells", [bytes_of("one", "two"), np.array([[b"\xff"]], dtype=np.object_), bytes_of()])
def test_what_is_no_name_is_refused(rig: ServiceRig, cells: Any) -> None:
    asked = Asked(rig, cells)
    (reply,) = asked.replies
    assert isinstance(reply, Failed)
    assert reply.error.code == "INVALID_ARG"


def test_it_is_answered_while_a_pass_hangs_and_the_queue_is_full(gated: ServiceRig, gate: Gate) -> None:
    gated.submit(0)
    gate.wait()
    for _ in range(5):
        gated.submit(0)  # its max_queue is 3
    for found in (Asked(gated, bytes_of("")).status(), status(gated, "one")):
        assert (found.queued, found.running, found.batches) == (3, 1, 1)
        assert (found.tasks[0].queued, found.tasks[0].running) == (3, 1)
        assert found.running_s > 0 == found.busy_s
        assert found.last_batch_s is None
        assert found.tasks[0].failures == {"queue_full": 2}


def test_what_waits_counts_also_once_its_task_has_left_and_is_told_of_no_more(
    gated: ServiceRig, gate: Gate, tmp_path: Path
) -> None:
    for _ in range(3):
        gated.submit(0)
    gate.wait()
    (tmp_path / "one").rename(tmp_path.parent / f"{tmp_path.name}-one")
    until(lambda: not status(gated, "one").tasks)
    found = Asked(gated, bytes_of("")).status()
    assert [each.name for each in found.tasks] == ["two"]
    assert (found.queued, found.running) == (2, 1)


def test_a_batch_that_ends_while_it_is_told_counts_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ServiceRig(root)
    engine = rig.service.engine
    engine.at_work = AtWork(1.0, running_since=engine.clock() - 5.0)
    now = engine.clock

    def clock() -> float:
        if engine.at_work.running_since is not None:
            engine.at_work = AtWork(6.0)
        return now()

    monkeypatch.setattr(engine, "clock", clock)
    found = rig.service.reporter.status()
    assert (found.busy_s, found.running_s) == (6.0, 0.0)


def test_the_numbers_of_all_tasks_are_read_again_where_a_batch_ends_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = ServiceRig(root)
    rig.service.loader.refresh()
    engine = rig.service.engine
    (first, *_), ends = rig.service.loader.standings, [0.25]
    assert first.vfm is not None
    account = first.vfm.engine

    def readings(vfm: Any) -> tuple[()]:
        if ends:
            engine.at_work = AtWork(ends.pop())
            account.requests += 1
        return ()

    monkeypatch.setattr(engine.runtime, "readings", readings)
    found = rig.service.reporter.status()
    assert (found.busy_s, found.tasks[0].requests) == (0.25, 1)


def test_one_is_attached_once_the_engine_has_done_so(gated: ServiceRig, gate: Gate, tmp_path: Path) -> None:
    assert only(gated, "two").attached is True
    gated.submit(0)
    gate.wait()
    write_task(tmp_path, "three", 4)
    three = only(gated, "three")
    assert (three.state, three.attached) == ("serving", False)
    gate.free()
    until(lambda: only(gated, "three").attached is True)


def test_one_whose_tag_anothers_requests_may_come_with_says_so(tmp_path: Path) -> None:
    models = FakeModels()
    models.loaded = {"one", "new"}
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, models=models)
    rig.service.loader.refresh()
    write_config(tmp_path, "one", 0, backbone="other")
    rig.service.loader.refresh()
    write_task(tmp_path, "new", 0)
    rig.service.loader.refresh()
    (new,) = [each for each in rig.service.reporter.status().tasks if each.state != "leaving"]
    assert (new.name, new.contested) == ("new", True)
    assert "requests of 'one' may come with it too" in new.error
    write_config(tmp_path, "new", 3)
    rig.service.loader.refresh()
    (new,) = rig.service.reporter.status("new").tasks
    assert (new.contested, new.error) == (False, "")


def test_it_is_answered_after_the_end(tmp_path: Path) -> None:
    """The look-up thread is gone: a request that comes meanwhile must not hang."""
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path)
    rig.service.start()
    rig.stop()
    assert [task.name for task in status(rig, "one").tasks] == ["one"]


def test_a_hundred_tasks_take_little_time(tmp_path: Path) -> None:
    for tag in range(100):
        write_task(tmp_path, f"task{tag}", tag)
    rig = ServiceRig(tmp_path)
    rig.service.loader.refresh()
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        assert len(Asked(rig, bytes_of("")).status().tasks) == 100
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.02, "reading the answer included"


def test_a_task_that_is_about_to_be_bound_here_is_read_and_its_tag_kept(rig: ServiceRig, tmp_path: Path) -> None:
    write_task(tmp_path, "next", 9, backbone="other")
    assert (status(rig, "next").prefetched, status(rig, "next").reserved) == (None, None)
    found = Asked(rig, bytes_of("next"), prefetch="true").status()
    assert (found.prefetched, found.reserved) == ("", 9)
    assert 0 < found.reserved_s <= KEPT_S
    assert found.tasks == (), "it is not bound here yet"
