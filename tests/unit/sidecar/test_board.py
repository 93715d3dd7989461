"""What the controller shows of itself, out of what it has seen."""

from __future__ import annotations

from live_server import status, task

from fmplex_backend.repository.inspection import Inspected
from fmplex_backend.status import CandidateStatus
from fmplex_controller.records.events import event_now
from fmplex_controller.sidecar.board import Board, Overview
from fmplex_controller.sidecar.metrics import Metrics
from fmplex_controller.sidecar.seen import Directory, Model, Seen, Unhealthy

READY = Model(ready=True)


def directory(name: str, kind: str = "task", **fields: object) -> Directory:
    inspected = Inspected(kind, backbone="base" if kind == "task" else "")  # type: ignore[arg-type]
    return Directory(name, "f", 9.0, inspected, **fields)  # type: ignore[arg-type]


def seen(*directories: Directory, ready: tuple[str, ...] = (), unhealthy: dict[str, Unhealthy] | None = None) -> Seen:
    return Seen({each.name: each for each in directories}, dict.fromkeys(ready, READY), unhealthy=unhealthy or {})


def states(overview: Overview) -> dict[str, tuple[str, str]]:
    backbones = {row.backbone: (row.state, row.error) for row in overview.backbones}
    return backbones | {row.task: (row.state, row.error) for row in overview.tasks}


def test_tasks_as_their_clients_find_them() -> None:
    board = Board(lambda: 5.0)
    board.told(status(task("a"), task("b", state="refused", error="it is wrong"), task("off")), 1.0)
    board.round(
        seen(
            directory("base", "backbone"),
            *(directory("a"), directory("b"), directory("off", unloaded=True), directory("bad", error="cut short")),
            directory("other", "model"),
            ready=("base", "a", "b"),
        )
    )
    found = board.overview()
    assert (found.last_round, found.quarantined, found.problem) == (5.0, 1, "")
    assert states(found) == {
        "base": ("serving", ""),
        "a": ("serving", ""),
        "b": ("refused", "it is wrong"),
        "off": ("not served", "its directory holds the file UNLOADED"),
        "bad": ("not served", "cut short"),
    }
    assert board.is_task("a")
    assert not board.is_task("base")
    assert not board.is_task("nobody")


def test_versions_that_are_tried() -> None:
    board = Board()
    tried = CandidateStatus(role="canary", version=2, share=0.25, account=7, requests=5, served_requests=15)
    board.told(status(task("a", candidates=(tried,)), task("b")), 1.0)
    board.round(seen(directory("base", "backbone"), directory("a"), directory("b"), ready=("base", "a", "b")))
    rows = [(row.task, row.role, row.version, row.share, row.requests) for row in board.overview().versions]
    assert rows == [("a", "serves", 1, 0.75, 15), ("a", "canary", 2, 0.25, 5)]


def test_backbones_whose_processes_are_dead() -> None:
    board = Board()
    board.told(status(task("a")), 1.0)
    for given_up in (False, True):
        unhealthy = {"base": Unhealthy("killed", unload=False, hold=True, given_up=given_up)}
        board.round(seen(directory("base", "backbone"), directory("a"), ready=("a",), unhealthy=unhealthy))
        found = states(board.overview())
        assert found["base"] == ("given up" if given_up else "dead", "killed")
        assert found["a"][0] == "not served"
    text = Metrics(board).text().decode()
    assert "fmplex_controller_backbones_dead 1.0" in text
    assert "fmplex_controller_backbones_given_up 1.0" in text


def test_events_are_counted_by_what_came_of_them() -> None:
    metrics = Metrics(board := Board())
    board.problem = "the server is away"
    metrics.told(event_now("loaded", "a"))
    metrics.told(event_now("refused", "a", "new", "its head is wrong"))
    metrics.told(event_now("given-up", 'b"\n'))
    text = metrics.text().decode()
    assert 'fmplex_controller_actions_total{kind="loaded",outcome="done"} 1.0' in text
    assert 'fmplex_controller_actions_total{kind="refused",outcome="failed"} 1.0' in text
    assert r'fmplex_controller_backbone_ends_total{backbone="b\"\n"} 1.0' in text
    assert "fmplex_controller_working 0.0" in text
    assert "last_round" not in text
