"""Elasticity on a real server: a backbone is started, and goes again. Tasks that move are in test_rebind."""

from __future__ import annotations

from pathlib import Path

import pytest
from elastic_server import TEXT, asked, elastic, places

from fmplex_controller.sidecar.elastic import Settings
from testing.repositories import Task, write_backbone, write_task
from testing.servers import eventually, serving

TASKS = ("one", "two", "three", "four")


@pytest.mark.slow
def test_a_backbone_is_started_under_load_and_removed_when_it_is_idle(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_backbone(repository, "first", threads="1", vfm_slots="16")
    for tag, name in enumerate(TASKS):
        write_task(repository, Task(name, tag, backbone="first", parameters={"slo_ms": "20"}))
    with serving(repository, tmp_path) as server, elastic(server, Settings(idle_s=5.0, hold_s=5.0)) as told:
        with asked(server, TASKS) as problems:
            eventually(lambda: "first-2" in places(server).values(), "tasks are on a new one", 90.0)
        assert not problems
        assert "first-2" in server.stubs()
        eventually(lambda: not (repository / "first-2").exists(), "it is removed", 90.0)
        eventually(lambda: "first-2" not in server.stubs(), "its process ends", 30.0)
        assert set(places(server).values()) == {"first"}
        kinds = [event.kind for event in told if event.model == "first-2"]
        assert kinds == ["backbone-started", "loaded", "backbone-stopped", "unloaded"]
        with server.client() as client:
            for name in TASKS:
                client.ask_one(name, TEXT).good()
