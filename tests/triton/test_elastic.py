"""Elasticity on a real server: an overloaded backbone gives tasks away, a new one starts and goes again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmplex_backend.repository.reader import RepositoryReader
from fmplex_controller.records.events import Event
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.elastic import Settings
from fmplex_controller.sidecar.planning import Limits
from fmplex_controller.sidecar.triton import Triton
from testing.adapters import lora
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

TASKS = ("tuned", "plain", "third", "fourth")
TEXT = "a text of some length that keeps a backbone at work for a while " * 4
CLIENTS = 16
ROOM = Limits(memory=1 << 40, parallel=8)  # as if every backbone had cores of its own


@contextmanager
def elastic(server: Serving, settings: Settings) -> Iterator[list[Event]]:
    """A controller beside the server while the block lasts; what it tells."""
    triton, stop, journal, told = Triton(server.grpc_url), threading.Event(), Journal(), list[Event]()
    journal.listeners.append(told.append)
    controller = Controller(server.repository, triton, journal=journal, elastic=ElasticOptions(settings, ROOM))
    thread = threading.Thread(target=controller.run, args=(stop,))
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        controller.wake()
        thread.join(30)
        triton.close()
    assert not thread.is_alive()


@contextmanager
def asked(server: Serving) -> Iterator[list[str]]:
    """Clients ask the tasks in turn while the block lasts; the errors they get."""
    stop, numbers, problems = threading.Event(), itertools.count(), list[str]()

    def ask() -> None:
        with server.client() as client:
            while not stop.is_set():
                number = next(numbers)
                answer = client.ask_one(TASKS[number % len(TASKS)], f"{number} {TEXT}")
                if answer.error:
                    problems.append(answer.message)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(CLIENTS):
            pool.submit(ask)
        try:
            yield problems
        finally:
            stop.set()


def places(server: Serving) -> dict[str, str]:
    return {name: backbone for name, (backbone, _) in RepositoryReader(server.repository).tasks().items()}


def write_repository(repository: Path, *backbones: str) -> None:
    for name in backbones:
        write_backbone(repository, name, threads="1", vfm_slots="16")
    for tag, name in enumerate(TASKS):
        adapter = lora() if name == "tuned" else None
        terms = {"slo_ms": "20"}  # a little overload is enough where requests are late
        write_task(repository, Task(name, tag, adapter=adapter, backbone=backbones[0], parameters=terms))


def test_an_overloaded_backbone_gives_tasks_away_and_no_request_fails(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_repository(repository, "first", "second")
    with serving(repository, tmp_path) as server:
        assert not server.refused
        with elastic(server, Settings(start=False)) as told, asked(server) as problems:
            eventually(lambda: "second" in places(server).values(), "a task moves", 30.0)
            eventually(lambda: any(event.kind == "rebound" for event in told), "it is told")
        assert not problems
        kinds = [event.kind for event in told if event.kind in ("overloaded", "rebound")]
        assert kinds[0] == "overloaded"
        assert all(event.outcome == "done" for event in told if event.kind == "rebound")
        moved = [event.model for event in told if event.kind == "rebound"]
        assert {name for name, place in places(server).items() if place == "second"} == set(moved)
        assert len(moved) == len(set(moved)) < len(TASKS), "each once, and not all of them"


@pytest.mark.slow
def test_a_backbone_is_started_under_load_and_removed_when_it_is_idle(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_repository(repository, "first")
    with serving(repository, tmp_path) as server, elastic(server, Settings(idle_s=5.0, hold_s=5.0)) as told:
        with asked(server) as problems:
            eventually(lambda: "first-2" in places(server).values(), "tasks are on a new one", 90.0)
        assert not problems
        started = server.stub("first-2").pid
        eventually(lambda: not (repository / "first-2").exists(), "it is removed", 90.0)
        eventually(lambda: "first-2" not in server.stubs(), "its process ends", 30.0)
        assert set(places(server).values()) == {"first"}
        kinds = [event.kind for event in told if event.model == "first-2"]
        assert kinds == ["backbone-started", "loaded", "backbone-stopped", "unloaded"]
        assert started
        with server.client() as client:
            for name in TASKS:
                client.ask_one(name, TEXT).good()
