"""A server at a glance: its backbones and tasks as they are, and how much of each was done of late.

Pure: who asks the backbones enters what they tell into a `History`, and gets rows for tables, pages and JSON.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import BaseModel

from fmplex_backend.status import BackboneStatus, TaskStatus

WINDOW_S = 10.0  # "of late"


class TaskRow(BaseModel):
    """A task. `None` stands for what is not known: counts of a task that is not served, rates of a first look."""

    task: str
    backbone: str
    state: str
    error: str = ""
    version: int | None = None
    weight: float | None = None
    slo_ms: float | None = None
    queued: int | None = None  # requests that wait
    share: float | None = None  # of the time that its backbone's tasks were charged of late
    share_total: float | None = None  # and since they were loaded
    requests_per_s: float | None = None
    wait_ms: float | None = None  # mean time that the requests of late waited
    misses_per_s: float | None = None  # requests later than their objective
    misses: int | None = None
    requests: int | None = None
    failures: int | None = None
    service_s: float | None = None  # of the backbone's time


class BackboneRow(BaseModel):
    """A backbone."""

    backbone: str
    state: str
    error: str = ""
    family: str = ""
    model: str = ""
    dtype: str = ""
    pid: int | None = None
    up_s: float | None = None
    tasks: int = 0
    queued: int | None = None
    running: int | None = None
    busy: float | None = None  # part of the time of late that passes ran
    requests_per_s: float | None = None
    batch_items: float | None = None  # mean rows of the batches of late
    busy_s: float | None = None


class _Look(NamedTuple):
    at: float
    status: BackboneStatus


class History:
    """What backbones told within the last seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._looks: dict[str, deque[_Look]] = {}

    def add(self, status: BackboneStatus, at: float) -> None:
        """Enter what a backbone tells now; what another process of it told is dropped."""
        looks = self._looks.setdefault(status.name, deque())
        if looks and _process(looks[-1].status) != _process(status):
            looks.clear()
        looks.append(_Look(at, status))
        while len(looks) > 2 and looks[1].at <= at - self.window_s:
            looks.popleft()

    def forget_others(self, backbones: Iterable[str]) -> None:
        """Of backbones that are no more."""
        for name in self._looks.keys() - set(backbones):
            del self._looks[name]

    def latest(self, backbone: str) -> BackboneStatus | None:
        """What it told last."""
        looks = self._looks.get(backbone)
        return looks[-1].status if looks else None

    def backbone(self, name: str, state: str = "serving", error: str = "") -> BackboneRow:
        """A backbone's row."""
        before, now, seconds = self._span(name)
        if now is None:
            return BackboneRow(backbone=name, state=state, error=error)
        row = BackboneRow(backbone=name, state=state, error=error, **now.model_dump(include=BACKBONE_FIELDS))
        row.tasks = len(now.tasks)
        if before is not None and seconds > 0:
            batches = now.batches - before.batches
            row.busy = min(1.0, (now.busy_s - before.busy_s) / seconds)
            row.batch_items = (now.items - before.items) / batches if batches else None
            row.requests_per_s = sum(_requests(now, before)) / seconds
        return row

    def task(self, task: TaskStatus) -> TaskRow:
        """A task's row."""
        row = TaskRow(task=task.name, **task.model_dump(include=TASK_FIELDS))
        if task.account is None:
            return row
        row.queued, row.requests, row.misses, row.service_s = task.queued, task.requests, task.misses, task.service_s
        row.failures = sum(task.failures.values())
        before, now, seconds = self._span(task.backbone)
        row.share_total = _part(task.service_s, sum(each.service_s for each in now.tasks)) if now else None
        if before is None or now is None or seconds <= 0:
            return row
        former = _accounts(before)
        mine = former.get(task.account)
        if mine is not None:
            requests = task.requests - mine.requests
            row.requests_per_s, row.misses_per_s = requests / seconds, (task.misses - mine.misses) / seconds
            row.wait_ms = 1000 * (task.queue_s - mine.queue_s) / requests if requests else None
            row.share = _part(task.service_s - mine.service_s, sum(_served(now, former)))
        return row

    def _span(self, backbone: str) -> tuple[BackboneStatus | None, BackboneStatus | None, float]:
        looks = self._looks.get(backbone)
        if not looks:
            return None, None, 0.0
        first, last = looks[0], looks[-1]
        return (first.status if len(looks) > 1 else None), last.status, last.at - first.at


BACKBONE_FIELDS = {"family", "model", "dtype", "pid", "up_s", "queued", "running", "busy_s"}
TASK_FIELDS = {"backbone", "state", "error", "version", "weight", "slo_ms"}


def _process(status: BackboneStatus) -> tuple[int, float]:
    return status.pid, status.started_at


def _accounts(status: BackboneStatus) -> dict[int, TaskStatus]:
    return {task.account: task for task in status.tasks if task.account is not None}


def _served(now: BackboneStatus, before: Mapping[int, TaskStatus]) -> Iterable[float]:
    for account, task in _accounts(now).items():
        yield task.service_s - (before[account].service_s if account in before else 0.0)


def _requests(now: BackboneStatus, before: BackboneStatus) -> Iterable[int]:
    former = _accounts(before)
    for account, task in _accounts(now).items():
        yield task.requests - (former[account].requests if account in former else 0)


def _part(own: float, total: float) -> float | None:
    return own / total if total > 0 else None
