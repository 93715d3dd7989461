"""A whole backbone from start to end: every call gets exactly one last reply."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import service_fixtures
from backend_fixtures import TextStandIn, write_task
from hypothesis import given, settings
from hypothesis import strategies as st
from service_fixtures import Gate, ServiceRig

from fmplex_backend.errors import ShuttingDown
from fmplex_backend.serving import service as service_module
from fmplex_backend.serving.service import JOIN_TIMEOUT_S
from fmplex_backend.types import Failed, Reply

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


def test_what_loading_a_model_has_freed_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def made(*args: Any, **named: Any) -> TextStandIn:
        order.append("loaded")
        return TextStandIn(*args, **named)

    monkeypatch.setattr(service_fixtures, "TextStandIn", made)
    monkeypatch.setattr(service_module, "give_back", lambda: order.append("given back"))
    ServiceRig(tmp_path)
    assert order == ["loaded", "given back"]


@pytest.mark.parametrize(("config", "part"), [({}, 0.95), ({"batch_efficiency": 0.7}, 0.7)])
def test_the_backbone_s_config_says_where_batches_end(tmp_path: Path, config: dict[str, float], part: float) -> None:
    rig = ServiceRig(tmp_path, **config)
    assert rig.service.engine.scheduler.efficiency.part == part


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


def test_calls_that_wait_for_a_look_up_are_answered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ServiceRig(tmp_path)
    rig.service.start()
    asked, go_on = threading.Event(), threading.Event()

    def slow(names: Any = None, only: Any = None) -> None:
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
    monkeypatch.setattr(service_module, "JOIN_TIMEOUT_S", 2.0)
    write_task(tmp_path, "one", 0)
    rig = ServiceRig(tmp_path, gate, max_items=1)
    monkeypatch.setattr(rig.service.watch, "follow_forever", lambda: None)
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
    former = dying.service.intake._enter

    def entered(*args: Any, **options: Any) -> None:
        former(*args, **options)
        posted.set()

    monkeypatch.setattr(dying.service.intake, "_enter", entered)
    dying.submit(3)
    assert posted.wait(20)
    gate.free()
    check_dead(dying, "engine")


def test_the_reply_thread_dies(dying: ServiceRig, gate: Gate) -> None:
    def broken(reply: Reply, final: bool) -> None:
        raise OSError("the server is gone")

    dying.service.start()
    call = dying.caller.call((0,))
    dying.caller.replies.pop()
    object.__setattr__(call, "send", broken)
    dying.service.submit(call)
    for _ in range(6):
        dying.submit(0)
    gate.free()
    check_dead(dying, "reply-0")


def test_no_reply_can_be_sent_at_all(dying: ServiceRig, gate: Gate) -> None:
    """The process ends all the same: a backbone that answers nobody must not live on."""

    def broken(reply: Reply, final: bool) -> None:
        raise OSError("the server is gone")

    dying.service.start()
    for _ in range(3):
        call = dying.caller.call((0,))
        dying.caller.replies.pop()
        object.__setattr__(call, "send", broken)
        dying.service.submit(call)
    gate.free()
    assert dying.exited.wait(JOIN_TIMEOUT_S / 2), "threads that die at once have waited for each other"
    assert dying.exits[0] not in (0, None)


def test_the_look_up_thread_dies(dying: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    dying.service.start()
    asked, go_on = threading.Event(), threading.Event()

    def broken(_: object = None) -> None:
        asked.set()
        go_on.wait(20)
        raise RuntimeError("a bug")

    monkeypatch.setattr(dying.service.watch._look_ups, "_read", broken)
    dying.submit(0)
    dying.submit(5)
    assert asked.wait(20)
    dying.submit(6)
    gate.wait()  # the first is in its pass, not in preparation any more
    go_on.set()
    gate.free()
    check_dead(dying, "look-up")
    assert dying.codes()[:3] == ["", "INTERNAL", "INTERNAL"]


@pytest.mark.parametrize("error", [ValueError("embedded null byte"), RecursionError(), KeyError("x")])
def test_a_round_that_fails_is_no_reason_to_stop_serving(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(names: Any = None) -> bool:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rig.service.loader, "settle", broken)
        rig.submit(0)
        rig.submit(7)  # an unknown tag, which is looked up
        rig.caller.wait()
    assert rig.codes() == ["", "INVALID_ARG"]
    write_task(rig.service.loader.repository.root, "seven", 7)
    rig.submit(7)
    rig.caller.wait()
    assert rig.codes() == ["", "INVALID_ARG", ""]


def test_the_watch_dies(dying: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        gate.free()
        raise RuntimeError("a bug")

    monkeypatch.setattr(dying.service.watch, "follow_forever", broken)
    dying.service.start()
    check_dead(dying, "watch")


# -- any history


TEXTS = ["a", "b c d", "poison", "fail", "steps=3", "stream steps=3", "refuse", "crash", "undecodable"]


TEXTS += ["stream steps=4 undecodable a b"]


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
        thread.join(0.0 if thread.name.endswith(("watch", "cancellation")) else 20)
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
