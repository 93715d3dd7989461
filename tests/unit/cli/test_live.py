"""What a server tells of a repository's tasks, over the way that requests take."""

from __future__ import annotations

import pytest
from live_server import FakeServer, status, task

from fmplex import ServerProblem, Unreachable
from fmplex.cli import live
from fmplex_backend.status import CandidateStatus

TASKS = {"one": "base", "two": "base", "three": "base", "orphan": "elsewhere"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer({"base": status(task("one", service_s=3.0), task("two", state="refused", error="cut short"))})
    monkeypatch.setattr(live, "Client", server.client)
    return server


@pytest.mark.parametrize("address", ["host:8001", ""])
def test_each_task_is_as_its_clients_find_it(server: FakeServer, address: str) -> None:
    server.loaded = {"one", "two", "three", "orphan"}
    found = live.read(address, TASKS)
    assert found is not None
    assert server.address == (address or "localhost:8001")
    assert {name: each.state for name, each in found.tasks.items()} == {
        "one": "serving",
        "two": "refused",
        "three": "not served",
        "orphan": "not served",
    }
    assert found.tasks["two"].error == "cut short"
    assert "does not find it in its model repository" in found.tasks["three"].error
    assert "does not serve its backbone 'elsewhere'" in found.tasks["orphan"].error
    assert found.share(found.tasks["one"]) == 1.0
    assert found.share(found.tasks["orphan"]) is None


def test_a_task_that_the_server_has_not_loaded(server: FakeServer) -> None:
    found = live.read("host:8001", {"one": "base"})
    assert found is not None
    assert (found.tasks["one"].state, found.tasks["one"].tag) == ("not served", 0)
    assert "has not loaded it" in found.tasks["one"].error


def test_a_backbone_whose_process_is_gone(server: FakeServer) -> None:
    server.problem = ServerProblem("Stub process is not healthy")
    server.loaded = {"one"}
    found = live.read("host:8001", {"one": "base"})
    assert found is not None
    assert found.tasks["one"].error == "its backbone 'base' does not answer: Stub process is not healthy"


def test_no_server(server: FakeServer) -> None:
    """Nobody asked for the one at the usual address, so that it may be missing."""
    server.problem = Unreachable("refused")
    assert live.read("", TASKS) is None
    with pytest.raises(Unreachable):
        live.read("host:8001", TASKS)


def test_another_repositorys_server(server: FakeServer) -> None:
    assert live.read("", {"orphan": "elsewhere"}) is None
    assert live.read("host:8001", {"orphan": "elsewhere"}) is not None


def test_what_a_canary_is_charged_is_the_tasks(server: FakeServer) -> None:
    canary = CandidateStatus(role="canary", version=2, account=9, service_s=4.0)
    tasks = task("one", service_s=2.0, candidates=(canary,)), task("two", service_s=2.0)
    server.backbones = {"base": status(*tasks)}
    server.loaded = {"one", "two"}
    found = live.read("host:8001", {"one": "base", "two": "base"})
    assert found is not None
    assert [found.share(found.tasks[name]) for name in ("one", "two")] == [0.75, 0.25]
