"""A repository and what its backbones tell, as a planner sees them; and a plan that is carried out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_config, write_version
from live_server import status, task
from task_fixtures import BASE, tiny_repository

from fmplex_backend.profiles import file_of
from fmplex_backend.status import BackboneStatus, Cost, TaskStatus
from fmplex_controller.planner.max_share import max_share
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar import planning
from fmplex_controller.sidecar.demand import Demands
from fmplex_controller.sidecar.plan_execution import carry_out
from testing.repositories import write_backbone

COST = Cost(fixed=1e-3, per_token=1e-4, per_area=0.0, per_group=0.0, once=1e-3)


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMPLEX_PROFILES", str(tmp_path / "profiles"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two backbones of one model; `a` and `b` are on `base`, `c` on `twin`."""
    found = tiny_repository(tmp_path, slots=8)
    write_backbone(found, "twin", model=str(tmp_path / "model"), threads="1", vfm_slots="8")
    for tag, (name, backbone) in enumerate({"a": BASE, "b": BASE, "c": "twin"}.items()):
        write_config(found, name, tag, backbone=backbone)
        write_version(found, name, 1, text_task({"kind": "embedding"}))
    return found


def told(name: str, seconds: float = 0.0, **rates: float) -> BackboneStatus:
    """A backbone after so many seconds of these rows per second, of 10 tokens each."""
    tasks = [
        task(each, backbone=name, requests=int(rate * seconds), items=int(rate * seconds), tokens=10 * rate * seconds)
        for each, rate in rates.items()
    ]
    more = {
        "name": name,
        "cost": COST,
        "max_batch": 16,
        "memory": 1000,
        "machine_memory": 2500,
        "cores": 2,
        "threads": 1,
    }
    return status(*tasks).model_copy(update=more)


def seen(root: Path, a: float, b: float, c: float) -> tuple[planning.Known, Demands]:
    demands = Demands()
    for now in (0.0, 10.0):
        statuses = [told(BASE, now, a=a, b=b), told("twin", now, c=c)]
        for each in statuses:
            demands.observe(each, now)
    return planning.read(root, statuses), demands


def test_what_a_planner_goes_by(root: Path) -> None:
    known, demands = seen(root, 100.0, 50.0, 0.0)
    found = planning.situation(known, demands, planning.Limits())
    (server,), (model,) = found.servers, found.models
    assert (server.memory, server.parallel) == (2500, 2.0)
    assert (model.memory, model.max_batch, model.label) == (1000, 16, BASE)
    assert model.latency(8, 10) == pytest.approx(1e-3 + 8e-3)
    rates = {each.name: (round(each.rate), each.tokens) for each in found.tasks}
    assert rates == {"a": (100, 10), "b": (50, 10), "c": (0, planning.DEFAULT_TOKENS)}
    assert {(each.task, each.backbone) for each in found.bindings} == {("a", BASE), ("b", BASE), ("c", "twin")}
    limited = planning.situation(known, demands, planning.Limits(memory=7, parallel=1))
    assert (limited.servers[0].memory, limited.servers[0].parallel) == (7, 1)


def test_a_profile_that_cannot_be_read_is_done_without(root: Path) -> None:
    file = file_of("m", "auto", "")
    file.parent.mkdir(parents=True)
    file.write_text("{")
    known, demands = seen(root, 100.0, 50.0, 0.0)
    (model,) = planning.situation(known, demands, planning.Limits()).models
    assert model.latency(8, 10) == pytest.approx(1e-3 + 8e-3)


def test_a_new_task_goes_to_the_fullest_that_has_room_and_nowhere_without_load(root: Path) -> None:
    assert planning.place(*seen(root, 100.0, 50.0, 20.0), "new") == BASE
    assert planning.place(*seen(root, 700.0, 300.0, 20.0), "new") == "twin"
    assert planning.place(*seen(root, 0.0, 0.0, 0.0), "new") is None
    assert planning.place(planning.read(root, []), Demands(), "new") is None


def test_what_tasks_that_have_moved_left_behind_counts_as_waiting(root: Path) -> None:
    known, demands = seen(root, 100.0, 50.0, 0.0)
    per_row = (1e-3 + 16 * 10 * 1e-4) / 16

    def wait_s(*tasks: TaskStatus, queued: int, running: int = 0, running_s: float = 0.0) -> float:
        more = {"tasks": tasks, "queued": queued, "running": running, "running_s": running_s}
        now = known.statuses[BASE].model_copy(update=more)
        demands.observe(now, 20.0 + queued)
        statuses = {**known.statuses, BASE: now}
        return planning.wait_s(replace(known, statuses=statuses), demands, BASE, 1.0)

    served = {"requests": 1000, "items": 1000, "tokens": 10000.0}
    a, b = (task(name, queued=4, running=2, **served) for name in "ab")
    assert wait_s(a, b, queued=8, running=4) == pytest.approx(12 * per_row)
    left = task("c", state="leaving", queued=30, **served)
    assert wait_s(a, b, left, queued=38, running=4) == pytest.approx(42 * per_row)
    assert wait_s(a, b, queued=39, running=4) == pytest.approx(43 * per_row), "it is told of no more"
    assert wait_s(a, b, queued=40, running=4, running_s=9.0) == 0.0
    assert wait_s(a, b, queued=1) == pytest.approx(12 * per_row), "read at different moments"


@dataclass
class FakeTriton:
    calls: list[str] = field(default_factory=list)

    def status(self, backbone: str, name: str = "", timeout: float = 0) -> BackboneStatus:
        return status(task(name))

    def prefetch(self, backbone: str, name: str, timeout: float = 0) -> BackboneStatus:
        return status().model_copy(update={"prefetched": ""})

    def load(self, name: str) -> None:
        self.calls.append(f"load {name}")

    def unload(self, name: str) -> None:
        self.calls.append(f"unload {name}")


def test_a_plan_is_carried_out_backbones_first_and_put_away_at_the_end(root: Path) -> None:
    known, demands = seen(root, 10.0, 10.0, 10.0)
    plan = max_share(planning.situation(known, demands, planning.Limits()), split=False)
    triton: Any = FakeTriton()
    journal, events = Journal(), list[tuple[str, str]]()
    journal.listeners.append(lambda event: events.append((event.kind, event.model)))
    done = list(carry_out(root, triton, plan, known.templates, journal))
    assert triton.calls == ["load c", "unload twin"]
    assert events == [("planned", ""), ("rebound", "c"), ("backbone-stopped", "twin")]
    assert done[-1] == "stopped twin, which has a file UNLOADED now"
    assert (root / "twin" / "UNLOADED").exists()
    assert "twin" not in planning.read(root, [told(BASE)]).taken, "it may be taken again"
