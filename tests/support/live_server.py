"""Statuses as backbones tell them, and a client of a server that tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmplex import ServerProblem
from fmplex_backend.status import BackboneStatus, TaskStatus


def task(name: str, **fields: Any) -> TaskStatus:
    """One that serves, unless the fields say otherwise."""
    return TaskStatus(**{"name": name, "backbone": "base", "tag": 0, "state": "serving", "version": 1, **fields})


def status(*tasks: TaskStatus) -> BackboneStatus:
    """Of the backbone `base`."""
    return BackboneStatus(
        name="base",
        family="text-encoder",
        model="m",
        dtype="auto",
        scheduler="bfq",
        slots=8,
        fmplex="0",
        up_s=1.0,
        batches=0,
        last_batch_s=None,
        queued=0,
        running=0,
        failures={},
        tasks=tasks,
    )


class FakeServer:
    """In the place of `Client`: `client` is its constructor, `calls` what was asked of it.

    Args:
        backbones: those that it serves.
    """

    def __init__(self, backbones: Mapping[str, BackboneStatus]) -> None:
        self.backbones = backbones
        self.loaded: set[str] = set()  # tasks
        self.problem: ServerProblem | None = None  # of every request but those for readiness
        self.calls: list[tuple[str, ...]] = []
        self.address = ""

    def client(self, url: str, **options: Any) -> FakeServer:
        self.address = self.url = url
        return self

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def ready(self, model: str) -> bool:
        return model in self.loaded or model in self.backbones

    def tasks(self) -> dict[str, TaskStatus]:
        if self.problem is not None:
            raise self.problem
        return {each.name: each for told in self.backbones.values() for each in told.tasks}

    def status(self, backbone: str) -> BackboneStatus:
        if self.problem is not None:
            raise self.problem
        if backbone not in self.backbones:
            raise ServerProblem(f"Request for unknown model: '{backbone}' is not found")
        return self.backbones[backbone]

    def load(self, model: str) -> None:
        self.calls.append(("load", model))
        if self.problem is not None:
            raise self.problem

    def unload(self, model: str) -> None:
        self.calls.append(("unload", model))
        if self.problem is not None:
            raise self.problem
