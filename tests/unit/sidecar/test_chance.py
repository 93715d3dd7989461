"""Elasticity where requests come by chance: Poisson arrivals, batches, and the clock of a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_config, write_version
from poisson_server import PoissonServer
from task_fixtures import BASE, tiny_repository

from fmplex_controller.records.events import Event
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import Adaptation, ElasticOptions
from fmplex_controller.sidecar.elastic import Settings
from testing.repositories import write_backbone

TASKS, ELSEWHERE = "abcdef", "gh"
TWIN_LOAD = 0.3


@dataclass(frozen=True, slots=True)
class Rig:
    """Six tasks on `base` and two on its twin, which has room."""

    server: PoissonServer
    adaptation: Adaptation
    events: list[Event]

    @staticmethod
    def of(folder: Path, per_second: float, load: float) -> Rig:
        """`base` serves so many rows per second at most, and that part of it is asked for."""
        root = tiny_repository(folder, slots=16)
        write_backbone(root, "twin", model=str(folder / "model"), vfm_slots="16")
        slo = 75 / per_second + 0.25
        for tag, name in enumerate(TASKS + ELSEWHERE):
            write_config(root, name, tag, backbone=BASE if name in TASKS else "twin", slo_ms=1e3 * slo)
            write_version(root, name, 1, text_task({"kind": "embedding"}))
        loads = dict.fromkeys(TASKS, load / len(TASKS)) | dict.fromkeys(ELSEWHERE, TWIN_LOAD / len(ELSEWHERE))
        server = PoissonServer(root, per_second, loads, dict.fromkeys(loads, slo), seed=0)
        journal, events = Journal(), list[Event]()
        journal.listeners.append(events.append)
        triton: Any = server
        options = ElasticOptions(Settings(start=False))
        return Rig(server, Adaptation(root, triton, journal, options, lambda: server.now), events)

    def run(self, seconds: float) -> list[str]:
        """What kinds of events come of it."""
        before = len(self.events)
        for _ in range(round(seconds / self.server.step_s)):
            for told in self.server.told():
                self.adaptation.told(told, self.server.now)
            self.adaptation.round()
        return [event.kind for event in self.events[before:]]


@pytest.fixture(autouse=True)
def no_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMPLEX_PROFILES", str(tmp_path / "profiles"))


@pytest.mark.parametrize(("per_second", "load"), [(25.0, 0.8), (25.0, 0.7), (400.0, 0.8)])
def test_a_steady_load_moves_nothing(per_second: float, load: float, tmp_path: Path) -> None:
    rig = Rig.of(tmp_path, per_second, load)
    assert rig.run(180.0) == []
    busy = rig.server.backbones[BASE].busy_s / rig.server.now
    assert busy > load, "it runs most of the time, with batches that are not full"


@pytest.mark.parametrize("per_second", [25.0, 400.0])
def test_a_load_beyond_its_capacity_is_seen_among_few_requests_too(per_second: float, tmp_path: Path) -> None:
    rig = Rig.of(tmp_path, per_second, 1.6)
    kinds = rig.run(10.0)
    assert kinds[0] == "overloaded"
    assert kinds.count("rebound") >= 2
