"""Elasticity at work on a repository on disk and a server that only remembers: what it sees, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_config, write_version
from live_server import status, task
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_backend.repository.writer import ModelRepository
from fmplex_backend.status import BackboneStatus, Cost
from fmplex_controller.records.events import Event
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import Adaptation, ElasticOptions, _Told
from fmplex_controller.sidecar.backbones import Backbones
from fmplex_controller.sidecar.elastic import Rebind, Settings
from fmplex_controller.sidecar.planning import Limits
from testing.repositories import write_backbone

COST = Cost(fixed=1e-3, per_token=1e-4, per_area=0.0, per_group=0.0, once=1e-3)
FULL = 16 / (1e-3 + 16e-3)  # rows per second of 10 tokens
STEP_S = 0.4
TASKS = tuple("abcdefgh")


@dataclass
class Server:
    """Backbones that serve up to FULL rows per second of what is asked of their tasks, wherever these are bound."""

    root: Path
    part: float  # of a backbone's capacity, for each task
    now: float = 0.0
    step_s: float = STEP_S
    calls: list[str] = field(default_factory=list)
    counts: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)  # rows asked for and served
    busy_s: dict[str, float] = field(default_factory=dict)
    machine_memory: int = 100_000
    members: tuple[str, ...] = ()
    slower: float = 1.0  # than its cost model says: it serves FULL all the same
    batch: float = 16.0  # rows

    def status(self, backbone: str, name: str = "", timeout: float = 0) -> BackboneStatus:
        return status(task(name, backbone=backbone))

    def prefetch(self, backbone: str, name: str, timeout: float = 0) -> BackboneStatus:
        return status().model_copy(update={"prefetched": ""})

    def load(self, name: str) -> None:
        self.calls.append(name)

    def told(self) -> list[BackboneStatus]:
        """What all backbones tell after another `step_s`."""
        self.now += self.step_s
        reader = RepositoryReader(self.root)
        places = {name: backbone for name, (backbone, _) in reader.tasks().items()}
        return [self._of(backbone, [n for n in TASKS if places[n] == backbone]) for backbone in reader.backbones()]

    def _of(self, backbone: str, names: list[str]) -> BackboneStatus:
        asked = self.part * FULL * self.step_s * len(names)
        done = min(1.0, FULL * self.step_s / asked) if asked else 0.0
        self.busy_s[backbone] = self.busy_s.get(backbone, 0.0) + min(1.0, asked / FULL / self.step_s) * self.step_s
        tasks = []
        for name in names:
            before = self.counts.get((name, backbone), (0.0, 0.0))
            rows = self.part * FULL * self.step_s
            asked_now, served = self.counts[name, backbone] = before[0] + rows, before[1] + rows * done
            tasks.append(
                task(
                    name,
                    backbone=backbone,
                    requests=int(served),
                    items=int(served),
                    tokens=10.0 * int(served),
                    queued=int(asked_now) - int(served),
                    service_s=self.slower * int(served) / FULL,
                )
            )
        group = [task("team", backbone=backbone, members=self.members)] if backbone == BASE and self.members else []
        more = {
            "name": backbone,
            "cost": COST,
            "max_batch": 16,
            "memory": 1000,
            "machine_memory": self.machine_memory,
            "cores": 8,
            "threads": 1,
            "pid": 1,
            "busy_s": self.busy_s[backbone],
            "items": round(1000 * self.now),
            "batches": round(1000 * self.now / self.batch),
        }
        return status(*tasks, *group).model_copy(update=more)


@dataclass
class Rig:
    server: Server
    adaptation: Adaptation
    events: list[Event]

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.server.step_s)):
            for each in self.server.told():
                self.adaptation.told(each, self.server.now)
            self.adaptation.round()

    def places(self) -> dict[str, str]:
        return {name: backbone for name, (backbone, _) in RepositoryReader(self.server.root).tasks().items()}

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Eight tasks on `base`, each with a twentieth of its capacity."""
    monkeypatch.setenv("FMPLEX_PROFILES", str(tmp_path / "profiles"))
    root = tiny_repository(tmp_path, slots=16)
    for tag, name in enumerate(TASKS):
        write_config(root, name, tag)
        write_version(root, name, 1, text_task({"kind": "embedding"}))
    server = Server(root, 0.05)
    triton: Any = server
    journal, events = Journal(), list[Event]()
    journal.listeners.append(events.append)
    options = ElasticOptions(Settings(idle_s=60.0))
    return Rig(server, Adaptation(root, triton, journal, options, lambda: server.now), events)


def test_load_that_grows_moves_tasks_to_the_other_backbone_and_stays_there(rig: Rig) -> None:
    write_backbone(rig.server.root, "twin", model=str(rig.server.root.parent / "model"), vfm_slots="16")
    rig.run(5.0)
    assert not rig.events
    rig.server.part = 0.2
    rig.run(3.0)
    assert rig.kinds() == ["overloaded", *["rebound"] * 4]
    assert "of its capacity is asked for" in rig.events[0].reason
    assert sorted(rig.places().values()) == [BASE] * 4 + ["twin"] * 4
    assert sorted(rig.server.calls) == sorted(name for name, place in rig.places().items() if place == "twin")
    rig.run(60.0)
    assert len(rig.events) == 5
    assert all(event.outcome == "done" for event in rig.events[1:])


def test_a_queue_that_has_grown_moves_tasks_within_their_slo(rig: Rig) -> None:
    for tag, name in enumerate(TASKS):
        write_config(rig.server.root, name, tag, slo_ms=500.0)
    write_backbone(rig.server.root, "twin", model=str(rig.server.root.parent / "model"), vfm_slots="16")
    rig.server.step_s = 0.2
    rig.run(5.0)
    rig.server.part = 0.2
    rig.run(0.6)
    assert rig.kinds() == ["overloaded", *["rebound"] * 4]
    assert "and what waits takes" in rig.events[0].reason


def test_how_slow_a_backbone_is_small_batches_do_not_tell(rig: Rig) -> None:
    rig.server.part, rig.server.slower = 0.11, 1.5
    write_backbone(rig.server.root, "twin", model=str(rig.server.root.parent / "model"), vfm_slots="16")
    slowness = []
    for rig.server.batch in (2.0, 12.0):
        rig.run(3.0)
        slowness.append([round(each, 1) for each in rig.adaptation._slowness.values()])
    assert slowness == [[], [1.5]]


def test_a_backbone_is_written_where_there_is_none_and_removed_in_the_end(rig: Rig) -> None:
    rig.server.part = 0.15
    rig.run(12.0)
    assert rig.kinds()[:2] == ["overloaded", "backbone-started"]
    assert (rig.server.root / "base-2" / "config.pbtxt").exists()
    assert set(rig.places().values()) == {BASE, "base-2"}
    rig.server.part = 0.02
    rig.run(100.0)
    assert rig.kinds()[-1] == "backbone-stopped"
    assert not (rig.server.root / "base-2").exists()
    assert set(rig.places().values()) == {BASE}


def test_a_backbone_that_somebody_put_away_stays_so_and_one_more_is_written_once(rig: Rig) -> None:
    Backbones(rig.server.root).copy("base-2", BASE)
    Backbones(rig.server.root).put_away("base-2")
    rig.server.part = 0.15
    for _ in range(30):
        for each in rig.server.told():
            if each.name == BASE:
                rig.adaptation.told(each, rig.server.now)
        rig.adaptation.round()
    assert [event.model for event in rig.events if event.kind == "backbone-started"] == ["base-3"]
    assert (rig.server.root / "base-2" / "UNLOADED").exists()
    assert not (rig.server.root / "base-4").exists()


def test_one_that_cannot_be_loaded_is_removed(rig: Rig) -> None:
    rig.server.part = 0.15
    rig.adaptation.errors = {"base-2": "there is no memory", BASE: "of no account"}
    for _ in range(20):
        for each in rig.server.told():
            if each.name == BASE:
                rig.adaptation.told(each, rig.server.now)
        rig.adaptation.round()
    assert rig.kinds() == ["overloaded", "backbone-started", "backbone-stopped"]
    assert "there is no memory" in rig.events[-1].reason
    assert not (rig.server.root / "base-2").exists()


def test_tasks_of_a_group_stay_and_what_fails_is_told(rig: Rig) -> None:
    write_backbone(rig.server.root, "twin", model=str(rig.server.root.parent / "model"), vfm_slots="16")
    rig.server.members, rig.server.part = TASKS[:6], 0.2
    (rig.server.root / "h" / "1" / "task.json").write_text("{")
    rig.run(3.0)
    outcomes = {event.model: event.outcome for event in rig.events if event.kind == "rebound"}
    assert outcomes["g"] == "done"
    assert outcomes.keys() <= {"g", "h"}
    assert set(TASKS[:6]) <= {name for name, place in rig.places().items() if place == BASE}


def test_backbones_that_tell_nothing_any_more_are_left_out(rig: Rig) -> None:
    write_backbone(rig.server.root, "twin", model=str(rig.server.root.parent / "model"), vfm_slots="16")
    rig.run(2.0)
    rig.server.part = 0.2
    rig.server.now += 10.0
    for _ in range(10):
        for each in rig.server.told():
            if each.name == BASE:
                rig.adaptation.told(each, rig.server.now)
        rig.adaptation.round()
    assert "rebound" not in rig.kinds()


def test_what_nobody_expected_of_one_action_keeps_no_other_from_being_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was decided counts as done, and is not decided again for a minute."""
    actions = [Rebind(name, BASE, "twin", "it is overloaded") for name in "ab"]
    done: list[str] = []

    def rebind(action: Rebind) -> None:
        done.append(action.task)
        if action.task == "a":
            raise KeyError("twin")

    monkeypatch.setattr(rig.adaptation.elastic, "decide", lambda observed, now: actions)
    monkeypatch.setattr(rig.adaptation, "_rebind", rebind)
    rig.run(STEP_S)
    assert done[:2] == ["a", "b"]


def test_options_cross_the_command_line() -> None:
    options = ElasticOptions(Settings(moves_per_minute=3, start=False), Limits(memory=5))
    flag, text = options.arguments
    assert (flag, ElasticOptions.of(text)) == ("--elastic", options)


def test_what_changes_while_the_repository_is_away_is_read_when_it_is_back(rig: Rig) -> None:
    told = [_Told(each, rig.server.now) for each in rig.server.told()]
    read = {each.status.name: each for each in told}
    root = rig.server.root
    assert rig.adaptation._read(read, 0.0).specs["a"][1].weight == 1.0
    ModelRepository(root).set("a", Terms(weight=2.0))
    rig.adaptation.changed({"a"})
    root.rename(root.with_name("away"))
    with pytest.raises(TaskProblem, match="there is no model repository"):
        rig.adaptation._read(read, 1.0)
    root.with_name("away").rename(root)
    assert rig.adaptation._read(read, 2.0).specs["a"][1].weight == 2.0
