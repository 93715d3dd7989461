"""When a backbone's process counts as unhealthy, when it may be loaded again, and when it is given up."""

from __future__ import annotations

from live_server import status

from fmplex_controller.server.ends import LONGEST_S, MOST, WINDOW_S
from fmplex_controller.sidecar.health import Health
from fmplex_controller.sidecar.seen import Miss
from fmplex_controller.sidecar.triton import DEAD as MISSES
from fmplex_controller.sidecar.triton import SILENT

DEAD = Miss("dead", MISSES)


def die(health: Health, now: float) -> None:
    for _ in range(MISSES):
        health.missed("base", DEAD, now, now)


def revive(health: Health, now: float, up_s: float = 0.5) -> None:
    health.judge("base", "files", False, now)
    health.answered("base", status().model_copy(update={"up_s": up_s}), now)


def test_one_miss_may_be_chance() -> None:
    health = Health()
    assert not health.missed("base", DEAD, 1.0, 1.0)
    health.answered("base", status(), 1.2)
    assert not health.missed("base", DEAD, 1.4, 1.4)
    assert health.judge("base", "files", True, 1.4) is None
    assert health.missed("base", DEAD, 1.6, 1.6)
    assert not health.missed("base", DEAD, 1.6, 1.6), "it is said once"


def test_it_is_unloaded_loaded_and_well_when_a_new_process_answers() -> None:
    health = Health()
    die(health, 10.0)
    loaded = health.judge("base", "files", True, 10.0)
    assert loaded is not None
    assert (loaded.unload, loaded.hold, loaded.reason) == (True, True, "dead")
    health.answered("base", status().model_copy(update={"up_s": 50.0}), 10.5)
    assert health.judge("base", "files", True, 10.5) == loaded, "the old process"
    unloaded = health.judge("base", "files", False, 11.0)
    assert unloaded is not None
    assert (unloaded.unload, unloaded.hold) == (False, False)
    again = health.judge("base", "files", True, 20.0)
    assert again is not None
    assert (again.unload, again.hold) == (False, True)
    health.answered("base", status().model_copy(update={"up_s": 1.0}), 20.2)
    assert health.judge("base", "files", True, 20.2) is None


def test_each_end_makes_the_pause_longer_until_it_is_given_up() -> None:
    health, now, pauses = Health(), 0.0, []
    for _ in range(MOST):
        now += 1.0
        die(health, now)
        steps = 0.0
        while (unhealthy := health.judge("base", "files", False, now + steps)) is not None and unhealthy.hold:
            steps += 0.5
        pauses.append(steps)
        now += steps + 1.0
        revive(health, now)
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0]
    die(health, now + 1.0)
    given_up = health.judge("base", "files", False, now + 1.0 + LONGEST_S * 2)
    assert given_up is not None
    assert given_up.given_up
    assert given_up.hold
    assert given_up.reason.startswith("given up after 6 ends within 10 minutes: dead. The server's log may say why")
    mended = health.judge("base", "other files", False, now + 2.0)
    assert mended is not None
    assert (mended.hold, mended.given_up) == (False, False)


def test_a_new_process_that_is_dead_at_once_is_another_end() -> None:
    health = Health()
    die(health, 1.0)
    health.judge("base", "files", False, 2.0)
    health.judge("base", "files", True, 3.0)
    die(health, 4.0)
    unhealthy = health.judge("base", "files", True, 4.0)
    assert unhealthy is not None
    assert unhealthy.unload
    unloaded = health.judge("base", "files", False, 4.5)
    assert unloaded is not None
    assert unloaded.hold


def test_late_misses_of_the_former_process_do_not_count() -> None:
    health = Health()
    die(health, 1.0)
    health.judge("base", "files", False, 1.1)
    for sent in (0.8, 1.0):
        assert not health.missed("base", DEAD, sent, 1.5)
    health.judge("base", "files", True, 2.0)
    for sent in (1.0, 1.9):
        assert not health.missed("base", DEAD, sent, 2.5)
    health.answered("base", status().model_copy(update={"up_s": 0.5}), 2.6)
    assert health.judge("base", "files", True, 2.6) is None
    assert not health.missed("base", DEAD, 2.7, 3.7)
    assert health.missed("base", DEAD, 2.8, 3.8)


def test_ends_long_ago_do_not_count() -> None:
    health = Health()
    for end in range(MOST * 2):
        now = end * (WINDOW_S + 1)
        die(health, now)
        unhealthy = health.judge("base", "files", False, now)
        assert unhealthy is not None
        assert not unhealthy.hold
        revive(health, now + 5.0)


def test_work_that_waits_while_no_batch_ends() -> None:
    health = Health(stall_s=10.0)
    busy = status().model_copy(update={"queued": 3, "batches": 7, "up_s": 100.0})
    for now in (1.0, 6.0, 11.0):
        health.answered("base", busy, now)
    health.answered("base", busy.model_copy(update={"batches": 8}), 11.5)
    for now in (12.0, 20.0):
        health.answered("base", busy.model_copy(update={"batches": 8}), now)
    assert health.judge("base", "files", True, 20.0) is None
    health.answered("base", busy.model_copy(update={"queued": 0, "batches": 8}), 21.0)
    for now in (22.0, 33.0):
        health.answered("base", busy.model_copy(update={"batches": 8}), now)
    unhealthy = health.judge("base", "files", True, 33.0)
    assert unhealthy is not None
    assert unhealthy.reason == "no batch has ended for 10 s while requests wait"
    health.forget_others(set())
    assert health.judge("base", "files", True, 33.0) is None


def test_a_process_that_just_does_not_answer_gets_more_time() -> None:
    health, silent = Health(), Miss("its process does not answer", SILENT)
    assert not any(health.missed("base", silent, 1.0, 1.0) for _ in range(SILENT - 1))
    assert health.missed("base", silent, 5.0, 5.0)
