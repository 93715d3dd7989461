"""What an API tells that has no controller behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from fmplex.client.overview import BackboneRow, TaskRow
from fmplex.client.versions import VersionRow
from fmplex_controller.records.events import Event
from fmplex_controller.records.usage import BackboneUsage, TaskUsage, Usage
from fmplex_controller.sidecar.board import Overview

NAME = "<img src=x onerror=alert(1)>"
GIVEN_UP = BackboneRow(backbone="base", state="given up", error="given up after 6 ends within 10 minutes: it is dead")
EVENT = Event(time=datetime(2026, 1, 31, tzinfo=timezone.utc), kind="loaded", model=NAME)


class FakeSource:
    """One task, on a backbone that is given up, and one event."""

    def __init__(self, key: str = "") -> None:
        self.control_key = key
        self.calls: list[Any] = []
        self.problem: Exception | None = None

    def overview(self) -> Overview:
        tasks = [TaskRow(task=NAME, backbone="base", state="serving")]
        versions = [VersionRow(task=NAME, version=2, role="shadow", agreement=0.5)]
        backbones = [GIVEN_UP]
        return Overview(problem="", last_round=1.0, backbones=backbones, tasks=tasks, versions=versions, quarantined=0)

    def events(self, since: datetime | None, model: str, most: int) -> Sequence[Event]:
        self.calls.append((since, model, most))
        return [EVENT]

    def usage(self, since: datetime | None) -> Usage:
        if self.problem is not None:
            raise self.problem
        row = TaskUsage(backbone="base", task=NAME, seconds=1.5, preparation_s=0.25, requests=2, items=3)
        return Usage(since=None, tasks=[row], backbones=[BackboneUsage(backbone="base", busy_s=1.5, charged_s=1.5)])

    def metrics(self) -> bytes:
        return b"fmplex_controller_working 1.0\n"

    def is_task(self, name: str) -> bool:
        return name == NAME

    def set_loaded(self, name: str, loaded: bool) -> None:
        if self.problem is not None:
            raise self.problem
        self.calls.append((name, loaded))
