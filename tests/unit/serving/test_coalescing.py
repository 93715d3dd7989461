"""How long a call of the server's lasts: no longer than there is something to do, and not for long."""

from __future__ import annotations

import threading

import pytest
from service_fixtures import Gate, ServiceRig

from fmplex_backend.serving import coalescing
from fmplex_backend.types import Request, Vfm


@pytest.fixture(autouse=True)
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the end of all work ends a pause."""
    monkeypatch.setattr(coalescing, "MOST_S", 1e6)


def pausing(rig: ServiceRig) -> threading.Thread:
    thread = threading.Thread(target=rig.service.coalesce_calls, daemon=True)
    thread.start()
    return thread


def check_over(thread: threading.Thread) -> None:
    thread.join(20)
    assert not thread.is_alive()


def test_nobody_waits_where_there_is_nothing_to_do(rig: ServiceRig) -> None:
    check_over(pausing(rig))
    rig.ask(0)
    check_over(pausing(rig))


def test_requests_collect_until_the_last_is_run(gated: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "MOST_S", 20.0)
    for tag in (0, 1, 0):
        gated.submit(tag)
    gate.wait()
    thread = pausing(gated)
    assert thread.is_alive()
    gate.free()
    check_over(thread)
    assert gated.service.engine.counts.items == 3
    gated.caller.wait()


@pytest.mark.parametrize("short", [False, True])
def test_an_idle_engine_waits_for_replies_only_where_passes_are_shorter_than_a_call(
    rig: ServiceRig, short: bool
) -> None:
    rig.ask(0)
    rig.service.engine.cost.fixed = coalescing.CALL_S * (0.5 if short else 2.0)
    sending, go_on = threading.Event(), threading.Event()
    request = Request(Vfm(0, "one"), {}, (), 0.0, lambda reply, final: None)

    def send() -> None:
        sending.set()
        assert go_on.wait(20)

    rig.service.replies.post(request, send)
    assert sending.wait(20)
    thread = pausing(rig)
    if short:
        assert thread.is_alive()
        go_on.set()
    check_over(thread)
    go_on.set()


def test_they_do_not_wait_for_a_long_pass(gated: ServiceRig, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "MOST_S", 1e-3)
    gated.submit(0)
    gate.wait()
    gated.service.coalesce_calls()
    assert not gated.caller.replies[0]
    gate.free()
    gated.caller.wait()
