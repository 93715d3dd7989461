"""What the controller knows at the moment, for those who ask: nothing is decided by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel

from fmplex.client.overview import BackboneRow, History, TaskRow
from fmplex.client.status import as_served, by_name
from fmplex.client.versions import VersionRow, rows_of
from fmplex_backend.printable import printable
from fmplex_backend.status import BackboneStatus, TaskStatus
from fmplex_controller.sidecar.seen import Directory, Model, Seen

UNLOADED = "its directory holds the file UNLOADED"


class Overview(BaseModel):
    """A server as its controller sees it."""

    problem: str  # why the controller can do nothing at the moment; "" where it can
    last_round: float | None  # seconds since 1970; None before the first
    backbones: Sequence[BackboneRow]
    tasks: Sequence[TaskRow]
    versions: Sequence[VersionRow]  # of tasks that try one beside the one that serves
    quarantined: int  # directories that are not loaded, or not as they are, for what is wrong with them


class Board:
    """Written by the controller's threads, read by any."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self.problem = ""
        self.last_round: float | None = None
        self._wall = wall
        self._history = History()
        self._seen = Seen({}, {})
        self._lock = threading.Lock()

    def told(self, status: BackboneStatus, at: float) -> None:
        """A backbone has told of itself."""
        with self._lock:
            self._history.add(status, at)

    def round(self, seen: Seen) -> None:
        """The controller has looked at the repository and the server."""
        backbones = {name for name, each in seen.directories.items() if each.inspected.kind == "backbone"}
        with self._lock:
            self._history.forget_others(backbones)
            self._seen, self.last_round = seen, self._wall()

    def is_task(self, name: str) -> bool:
        """Whether the repository has a task of this name."""
        directory = self._seen.directories.get(name)
        return directory is not None and directory.inspected.kind == "task"

    @property
    def dead(self) -> Sequence[str]:
        """Backbones whose processes do not answer, those that are given up included."""
        return sorted(self._seen.unhealthy)

    @property
    def given_up(self) -> Sequence[str]:
        """Backbones that are not loaded again by themselves."""
        return sorted(name for name, unhealthy in self._seen.unhealthy.items() if unhealthy.given_up)

    @property
    def quarantined(self) -> Sequence[str]:
        """Directories with an ERROR.txt."""
        return sorted(name for name, each in self._seen.directories.items() if each.error)

    def overview(self) -> Overview:
        """All of it."""
        with self._lock:
            every = sorted(self._seen.directories.items())
            told = {name: by_name(status.tasks) for name, status in self._history.latest().items()}
            own = (told.get(printable(each.inspected.backbone), {}).get(printable(name)) for name, each in every)
            return Overview(
                problem=self.problem,
                last_round=self.last_round,
                backbones=[self._backbone(each) for _, each in every if each.inspected.kind == "backbone"],
                tasks=[self._task(each, told) for _, each in every if each.inspected.kind == "task"],
                versions=rows_of(each for each in own if each is not None),
                quarantined=len(self.quarantined),
            )

    def _backbone(self, directory: Directory) -> BackboneRow:
        name, unhealthy = directory.name, self._seen.unhealthy.get(directory.name)
        shown = printable(name)
        if unhealthy is not None:
            return self._history.backbone(shown, "given up" if unhealthy.given_up else "dead", unhealthy.reason)
        if self._model(name).ready:
            return self._history.backbone(shown, "serving", directory.error)
        return BackboneRow(backbone=shown, state="not served", error=_why(directory))

    def _task(self, directory: Directory, told: Mapping[str, Mapping[str, TaskStatus]]) -> TaskRow:
        backbone, name = directory.inspected.backbone, printable(directory.name)
        own = told.get(printable(backbone), {}).get(name)
        ready = self._model(directory.name).ready and backbone not in self._seen.unhealthy
        task = as_served(name, own, ready, _why(directory))
        if not task.error and directory.error:
            task = task.model_copy(update={"error": directory.error})
        return self._history.task(task.model_copy(update={"backbone": printable(backbone)}))

    def _model(self, name: str) -> Model:
        return self._seen.models.get(name, Model(ready=False))


def _why(directory: Directory) -> str:
    return UNLOADED if directory.unloaded else directory.error
