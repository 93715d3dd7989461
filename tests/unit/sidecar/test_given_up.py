"""A backbone that never comes back, in the controller as a whole: it is given up, says so everywhere, and rests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from controller_rig import Rig
from starlette.testclient import TestClient
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import ServerProblem
from fmplex_controller.api.app import make_app
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.api.serving import ControllerSource
from fmplex_controller.records.journal import Journal
from fmplex_controller.server.ends import MOST

ADDRESS = "http://127.0.0.1:8003"
HOUR_S = 3600.0
SAYS = f"given up after {MOST + 1} ends within 10 minutes: its process is dead. The server's log may say why; change "


@dataclass(frozen=True, slots=True)
class Beside:
    """A controller with its log of events, and its API."""

    rig: Rig
    api: TestClient

    def state(self) -> tuple[str, str]:
        """Of the backbone, and why, as the API has it."""
        (row,) = self.api.get("/v1/status").json()["backbones"]
        return row["state"], row["error"]

    def gauge(self, name: str) -> float:
        """One of the controller's metrics."""
        lines = self.api.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"fmplex_controller_{name}"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of one kind, out of the log."""
        return [event for event in self.api.get("/v1/events?limit=1000").json() if event["kind"] == kind]

    def is_given_up(self) -> bool:
        """Also where nothing is loaded any more for hours."""
        kinds = len(self.events("given-up"))
        self.rig.run(60.0, probes=True)
        assert len(self.events("given-up")) == kinds, "it is said once"
        return self.state()[0] == "given up" and not self.rig.run(HOUR_S, 20.0, probes=True)


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    """A task that is served, on a backbone that is well."""
    rig = Rig(tiny_repository(tmp_path, slots=8))
    journal = Journal.opened(tmp_path / "records", rig.root, "localhost:8001")
    rig.begin_anew(journal=journal)
    rig.write("a")
    assert rig.run(5.0, probes=True) == ["load base", "load a"]
    source = ControllerSource(rig.controller)
    with TestClient(make_app(source, ApiOptions("127.0.0.1", 8003, "")), base_url=ADDRESS) as api:
        yield Beside(rig, api)
    journal.close()
    rig.pool.shutdown()


def test_it_is_loaded_a_few_times_and_then_no_more(beside: Beside) -> None:
    rig = beside.rig
    rig.triton.dead.add(BASE)
    calls = rig.run(60.0, probes=True)
    assert calls == ["unload a", *["unload base", "load base"] * MOST, "unload base"]
    assert len(beside.events("dead")) == MOST
    (event,) = beside.events("given-up")
    assert event["model"] == BASE
    assert event["reason"].startswith(SAYS)
    state, error = beside.state()
    assert state == "given up"
    assert error.startswith(SAYS)
    assert SAYS in rig.error(BASE)
    assert (beside.gauge("backbones_given_up"), beside.gauge("quarantined")) == (1.0, 1.0)
    assert beside.api.get("/v1/status").json()["tasks"][0]["state"] == "not served"
    written = (rig.root / BASE / "ERROR.txt").stat()
    assert beside.is_given_up()
    assert (rig.root / BASE / "ERROR.txt").stat() == written


def mend(rig: Rig) -> None:
    """As somebody does who has found the cause in the backbone's settings."""
    config = rig.root / BASE / "config.pbtxt"
    config.write_text(config.read_text() + "# mended\n")


def test_a_change_in_its_directory_is_a_new_beginning(beside: Beside) -> None:
    rig = beside.rig
    rig.triton.dead.add(BASE)
    rig.run(60.0, probes=True)
    assert beside.state()[0] == "given up"
    mend(rig)
    again = rig.run(60.0, probes=True)
    assert again.count("load base") == MOST + 1, "the cause is another one"
    assert beside.is_given_up()
    rig.triton.dead.clear()
    mend(rig)
    assert rig.run(10.0, probes=True) == ["load base", "load a"]
    assert beside.state() == ("serving", "")
    assert not rig.error(BASE)
    assert (beside.gauge("backbones_given_up"), beside.gauge("quarantined")) == (0.0, 0.0)
    assert len(beside.events("back")) == 1


def test_a_load_by_hand_is_a_new_beginning(beside: Beside) -> None:
    rig = beside.rig
    rig.triton.dead.add(BASE)
    rig.run(60.0, probes=True)
    assert beside.state()[0] == "given up"
    rig.triton.dead.clear()
    rig.triton.load(BASE)
    assert rig.run(10.0, probes=True) == ["load a"]
    assert beside.state() == ("serving", "")
    assert not rig.error(BASE)
    rig.triton.dead.add(BASE)
    assert rig.run(60.0, probes=True).count("load base") == MOST
    assert beside.is_given_up()


def test_a_load_by_hand_of_what_dies_again_is_no_beginning(beside: Beside) -> None:
    rig = beside.rig
    rig.triton.dead.add(BASE)
    rig.run(60.0, probes=True)
    rig.triton.load(BASE)
    assert rig.run(10.0, probes=True) == ["unload base"]
    assert beside.is_given_up()


def test_one_that_cannot_be_loaded_at_once_is_tried_again(beside: Beside) -> None:
    rig = beside.rig
    rig.triton.dead.add(BASE)
    rig.triton.refuses[BASE] = ServerProblem("no memory is left", "INTERNAL")
    assert rig.run(5.0, probes=True) == ["unload a", "unload base"]
    assert beside.state()[0] == "dead"
    rig.triton.refuses.clear()
    rig.triton.dead.clear()
    assert rig.run(15.0, probes=True) == ["load base", "load a"]
    assert beside.state() == ("serving", "")
    assert not beside.events("quarantined")


def test_one_that_cannot_be_loaded_again_is_not_tried_over_and_over(beside: Beside) -> None:
    rig = beside.rig
    rig.triton.dead.add(BASE)
    rig.triton.refuses[BASE] = ServerProblem("no memory is left", "INTERNAL")
    assert rig.run(60.0, probes=True) == ["unload a", "unload base"]
    assert beside.state()[0] == "given up"
    assert "Triton does not load it: no memory is left" in rig.error(BASE)
    assert not rig.run(HOUR_S, 20.0, probes=True)
    assert len(beside.events("refused")) == MOST
    assert len(beside.events("given-up")) == 1
    rig.triton.refuses.clear()
    rig.triton.dead.clear()
    mend(rig)
    assert rig.run(10.0, probes=True) == ["load base", "load a"]
    assert not rig.error(BASE)
