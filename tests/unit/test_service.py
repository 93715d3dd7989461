"""A whole backbone with no server around it and no model in it: every call gets exactly one reply."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import BACKBONE, Caller, edit, write_task
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_backend import service as service_module
from fmplex_backend.config import BackboneConfig
from fmplex_backend.errors import ShuttingDown
from fmplex_backend.runtime.fake import FakeRuntime
from fmplex_backend.service import Service
from fmplex_backend.types import Answer, Failed, Reply


def no_time(seconds: float) -> None:
    """A pass takes none."""


class Gate:
    """Holds the engine in its pass until it is let on."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        self._free = threading.Event()

    def __call__(self, seconds: float) -> None:
        self.reached.release()
        if not self._free.is_set():
            self._open.acquire(timeout=20)

    def wait(self) -> None:
        """Until the engine is in a pass."""
        assert self.reached.acquire(timeout=20)

    def step(self) -> None:
        """Let one pass go on."""
        self._open.release()

    def free(self) -> None:
        """Let all go on."""
        self._free.set()
        self._open.release()


class ServiceRig:
    """A service over the fake runtime."""

    def __init__(
        self, root: Path, sleep: Callable[[float], None] = no_time, *, max_items: int = 8, **config: Any
    ) -> None:
        self.root, self.caller = root, Caller()
        self.exits: list[int] = []
        self.exited = threading.Event()
        self.service = Service(
            root,
            BACKBONE,
            BackboneConfig(model="none", **config),
            max_items,
            lambda cost: FakeRuntime(sleep=sleep),
            self._exit,
        )
        self.service.loader.grace = 0.0

    def _exit(self, code: int) -> None:
        self.exits.append(code)
        self.exited.set()

    def submit(self, *tags: int, text: str = "some words", **options: Any) -> int:
        """A call; its number."""
        self.service.submit(self.caller.call(tags, text, **options))
        return len(self.caller.replies) - 1

    def ask(self, *tags: int, text: str = "some words", **options: Any) -> Reply:
        """A call and its reply."""
        number = self.submit(*tags, text=text, **options)
        self.caller.wait()
        return self.caller.only(number)

    def failure(self, *tags: int, text: str = "some words", **options: Any) -> tuple[str, str]:
        """Code and message of a call that fails."""
        self.ask(*tags, text=text, **options)
        return self.caller.failure()

    def failure_now(self, *tags: int) -> tuple[str, str]:
        """Of a call that is answered before `submit` returns."""
        self.submit(*tags)
        return self.caller.failure()

    def codes(self) -> list[str]:
        """Of all replies, one per call; empty where it is an answer."""
        replies = [self.caller.only(number) for number in range(len(self.caller.replies))]
        return [reply.error.code if isinstance(reply, Failed) else "" for reply in replies]

    def stop(self) -> None:
        self.service.stop()
        assert all(len(replies) == 1 for replies in self.caller.replies)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ServiceRig]:
    """With two tasks, started; stopped at the end."""
    write_task(tmp_path, "one", 0, task={"mark": 1})
    write_task(tmp_path, "two", 1, task={"mark": 2})
    rig = ServiceRig(tmp_path)
    rig.service.start()
    yield rig
    rig.stop()
    assert rig.exits == []


# -- answers


def test_an_answer_and_its_receipt(rig: ServiceRig) -> None:
    reply = rig.ask(1, text="three words here")
    assert isinstance(reply, Answer)
    assert np.array_equal(reply.tensors["EMBEDDING"], [[3, 2]])
    assert reply.usage.batch_items == 1
    assert reply.usage.queue_us >= 0
    assert reply.usage.compute_us >= 0


def test_each_task_is_answered_with_its_own_extensions(rig: ServiceRig) -> None:
    for number in range(40):
        rig.submit(number % 2)
    rig.caller.wait()
    marks = [float(rig.caller.answer(number).tensors["EMBEDDING"][0, 1]) for number in range(40)]
    assert marks == [1.0, 2.0] * 20


def test_the_same_tag_twice_is_one_tag(rig: ServiceRig) -> None:
    assert isinstance(rig.ask(0, 0), Answer)


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
    assert rig.service.intake.failures == {"invalid": 1}


def test_an_empty_repository_says_so(tmp_path: Path) -> None:
    rig = ServiceRig(tmp_path)
    rig.service.start()
    assert "(none is in the repository)" in rig.failure(0)[1]
    rig.stop()


def test_an_unknown_tag_is_looked_for_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton may know of a task before the watch has seen it."""
    rig = ServiceRig(tmp_path)
    monkeypatch.setattr(rig.service.loader, "watch_forever", lambda: None)
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


@pytest.mark.parametrize(("text", "code"), [("refuse", "INVALID_ARG"), ("crash", "INTERNAL"), ("fail", "INTERNAL")])
def test_what_fails_fails_alone(rig: ServiceRig, text: str, code: str) -> None:
    numbers = [rig.submit(0), rig.submit(0, text=text), rig.submit(1)]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["", code, ""]


def test_the_scheduler_learns_how_long_answers_take_to_leave(rig: ServiceRig) -> None:
    now = [100.0]
    rig.service.engine.clock = lambda: now[0]
    call = rig.caller.call((0,))

    def slow(reply: Reply) -> None:
        now[0] += 0.25  # a server that takes its time
        call.reply(reply)

    rig.service.submit(replace(call, reply=slow))
    rig.caller.wait()
    until(lambda: rig.service.engine.scheduler.way_back == 0.25)
    rig.ask(0)
    until(lambda: 0.2 < rig.service.engine.scheduler.way_back < 0.25)


def test_a_decoder_that_raises_fails_its_request_alone(rig: ServiceRig) -> None:
    numbers = [rig.submit(0), rig.submit(0, text="undecodable"), rig.submit(0, text="poison"), rig.submit(0)]
    rig.caller.wait()
    assert [rig.codes()[number] for number in numbers] == ["", "INTERNAL", "INTERNAL", ""]
    assert "the decoder of 'one' raised ValueError" in rig.caller.failure(1)[1]
    vfm: Any = rig.service.loader.table[0]
    assert vfm.replied.failures == {"execution": 1}


# -- queues


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(tmp_path: Path, gate: Gate) -> Iterator[ServiceRig]:
    """One item per batch, and every pass waits for the gate."""
    write_task(tmp_path, "one", 0, max_queue=3)
    write_task(tmp_path, "two", 1)
    rig = ServiceRig(tmp_path, gate, max_items=1, max_queue=5)
    rig.service.start()
    yield rig
    gate.free()
    rig.stop()


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


def test_a_client_that_went_away_is_not_served(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "SWEEP_S", 0.02)
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate, max_items=1)
    rig.service.start()
    rig.submit(0)
    gate.wait()
    for handle in (None, lambda: True, lambda: True, broken_handle, lambda: False, lambda: True):
        rig.submit(0, is_cancelled=handle)
    threading.Event().wait(0.05)  # longer than a sweep's pause: only then a client is asked
    for _ in range(2):  # the sweep has asked which ones wait, then it has asked their clients
        gate.step()
        gate.wait()
        until(lambda: not rig.service.engine._inbox.empty())
    gate.free()
    rig.caller.wait()
    assert rig.codes() == ["", "", "", "CANCELLED", "", "", "CANCELLED"]  # the third was in a pass by then
    rig.stop()


def broken_handle() -> bool:
    raise RuntimeError("the server has let go of this request")


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


# -- the beginning and the end


def test_what_is_read_at_the_start_is_attached_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters would be in memory twice if they were kept until the last one is read."""
    for number in range(3):
        write_task(tmp_path, f"task{number}", number)
    rig = ServiceRig(tmp_path)
    runtime = rig.service.runtime
    load, attach, attached = runtime.load, runtime.attach, threading.Semaphore(1)

    def load_after_the_former(version: Path) -> Any:
        assert attached.acquire(timeout=20)
        return load(version)

    def attach_and_tell(extensions: Any) -> None:
        attach(extensions)
        attached.release()

    monkeypatch.setattr(runtime, "load", load_after_the_former)
    monkeypatch.setattr(runtime, "attach", attach_and_tell)
    rig.service.start()
    for number in range(3):
        rig.ask(number)
    rig.stop()
    assert rig.codes() == [""] * 3


def test_stopping_answers_what_waits(tmp_path: Path, gate: Gate) -> None:
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate, max_items=1)
    rig.service.start()
    for _ in range(10):
        rig.submit(0)
    gate.wait()
    stopping = threading.Thread(target=rig.stop)
    stopping.start()
    gate.free()
    stopping.join(20)
    assert not stopping.is_alive()
    assert rig.codes() == [""] * 10


def test_after_the_end(tmp_path: Path) -> None:
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path)
    rig.service.start()
    rig.stop()
    for tags in ((0,), (7,), (), (0, 1)):
        assert rig.failure(*tags)[0] == "UNAVAILABLE"
    reply = rig.caller.only()
    assert isinstance(reply, Failed)
    assert isinstance(reply.error, ShuttingDown)
    assert "is being unloaded" in str(reply.error)


def test_an_engine_that_hangs_is_not_waited_for(tmp_path: Path, gate: Gate) -> None:
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate, max_items=1)
    rig.service.start()
    for _ in range(5):
        rig.submit(0)
    gate.wait()
    rig.service.stop(timeout=0.1)
    rig.caller.wait()
    gate.free()
    rig.service._threads["engine"].join(20)
    assert rig.codes() == ["UNAVAILABLE"] * 5


def test_questions_that_wait_are_answered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ServiceRig(tmp_path)
    rig.service.start()
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        asked.set()
        go_on.wait(20)

    monkeypatch.setattr(rig.service.loader, "refresh", slow)
    rig.submit(3)
    assert asked.wait(20)
    for _ in range(3):
        rig.submit(4)
    stopping = threading.Thread(target=rig.service.stop)
    stopping.start()
    go_on.set()
    stopping.join(20)
    rig.caller.wait()
    assert set(rig.codes()) <= {"UNAVAILABLE", "INVALID_ARG"}


# -- threads that die


@pytest.fixture
def dying(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceRig]:
    """One item per batch, and every pass waits for the gate; nobody waits long for a dead thread."""
    monkeypatch.setattr(service_module, "PATIENCE_S", 2.0)
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate, max_items=1)
    monkeypatch.setattr(rig.service.loader, "watch_forever", lambda: None)
    yield rig
    gate.free()
    rig.service.stop(timeout=2)


def check_dead(rig: ServiceRig, role: str) -> None:
    assert rig.exited.wait(20)
    assert rig.exits[0] not in (0, None)
    assert [len(replies) for replies in rig.caller.replies] == [1] * len(rig.caller.replies)
    code, text = rig.failure(0)
    assert code == "INTERNAL"
    assert f"the {role} thread" in text
    assert rig.failure(77)[0] == "INTERNAL"


def test_the_engine_dies(dying: ServiceRig, gate: Gate) -> None:
    dying.service.start()
    numbers = [dying.submit(0), *(dying.submit(0, text="die a b c") for _ in range(2)), dying.submit(0)]
    gate.free()
    check_dead(dying, "engine")
    assert dying.codes()[numbers[0]] == ""
    assert set(dying.codes()[1:4]) == {"INTERNAL"}


def test_the_engine_dies_with_a_late_request_on_its_way(
    dying: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose tag was looked for on disk while the engine was in its last pass."""
    dying.service.start()
    dying.submit(0, text="die")
    gate.wait()
    write_task(dying.root, "late", 3)
    posted = threading.Event()
    former = dying.service._enter

    def entered(*args: Any, **options: Any) -> None:
        former(*args, **options)
        posted.set()

    monkeypatch.setattr(dying.service, "_enter", entered)
    dying.submit(3)
    assert posted.wait(20)
    gate.free()
    check_dead(dying, "engine")


def test_the_reply_thread_dies(dying: ServiceRig, gate: Gate) -> None:
    def broken(reply: Reply) -> None:
        raise OSError("the server is gone")

    dying.service.start()
    call = dying.caller.call((0,))
    dying.caller.replies.pop()
    object.__setattr__(call, "reply", broken)
    dying.service.submit(call)
    for _ in range(6):
        dying.submit(0)
    gate.free()
    check_dead(dying, "reply")


def test_no_reply_can_be_sent_at_all(dying: ServiceRig, gate: Gate) -> None:
    """The process ends all the same: a backbone that answers nobody must not live on."""

    def broken(reply: Reply) -> None:
        raise OSError("the server is gone")

    dying.service.start()
    for _ in range(3):
        call = dying.caller.call((0,))
        dying.caller.replies.pop()
        object.__setattr__(call, "reply", broken)
        dying.service.submit(call)
    gate.free()
    assert dying.exited.wait(20)
    assert dying.exits[0] not in (0, None)


def test_the_loader_dies(dying: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    dying.service.start()
    asked, go_on = threading.Event(), threading.Event()

    def broken() -> None:
        asked.set()
        go_on.wait(20)
        raise RuntimeError("a bug")

    monkeypatch.setattr(dying.service.loader, "refresh", broken)
    dying.submit(0)
    dying.submit(5)
    assert asked.wait(20)
    dying.submit(6)
    go_on.set()
    gate.free()
    check_dead(dying, "loader")
    assert dying.codes()[:3] == ["", "INTERNAL", "INTERNAL"]


def test_the_watch_dies(dying: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        gate.free()
        raise RuntimeError("a bug")

    object.__setattr__(dying.service._threads["watch"], "_target", lambda: dying.service._guard("watch", broken))
    dying.service.start()
    check_dead(dying, "watch")


# -- any history

TEXTS = ["a", "b c d", "poison", "fail", "steps=3", "refuse", "crash", "undecodable"]
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.lists(st.integers(0, 3), max_size=2), st.sampled_from(TEXTS)),
    st.tuples(st.sampled_from(["write", "remove", "refresh"]), st.lists(st.integers(0, 3), max_size=1), st.just("")),
)


@settings(max_examples=25)
@given(
    actions=st.lists(ACTIONS, min_size=1, max_size=25),
    end=st.sampled_from(["stop", "hang", "die"]),
    scheduler=st.sampled_from(["bfq", "stfq", "fifo"]),
)
def test_any_history_ends_in_one_reply_per_call(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, list[int], str]], end: str, scheduler: str
) -> None:
    root = tmp_path_factory.mktemp("repository")
    write_task(root, "task0", 0, max_queue=4)
    rig = ServiceRig(root, max_items=3, scheduler=scheduler)
    rig.service.start()
    for action, tags, text in actions:
        act(rig, action, tags, text)
    if end == "die":
        rig.submit(0, text="die")
    rig.service.stop(timeout=0.0 if end == "hang" else 20)
    rig.submit(0)
    rig.submit(9)
    rig.caller.wait()
    for thread in rig.service._threads.values():
        thread.join(0.0 if thread.name.endswith(("watch", "sweep")) else 20)
    assert [len(replies) for replies in rig.caller.replies] == [1] * len(rig.caller.replies)


def act(rig: ServiceRig, action: str, tags: list[int], text: str) -> None:
    if action == "submit":
        rig.submit(*tags, text=text)
        return
    name = f"task{sum(tags)}"
    if action == "write":
        write_task(rig.root, name, sum(tags))
    elif action == "remove":
        shutil.rmtree(rig.root / name, ignore_errors=True)
    else:
        rig.service.loader.refresh()
