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
    """A task, with its canary. `None`: not known, as counts of a task that is not served, or rates of a first look."""

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
    adapter_in_memory: bool | None = None  # where its backbone has `adapter_memory`


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


class _Span(NamedTuple):
    """From a backbone's first look within the window to its last."""

    now: BackboneStatus
    seconds: float  # 0 where there was one look
    before: BackboneStatus
    former: Mapping[int, TaskStatus]  # by account, as they were then
    service_s: float  # that its tasks have been charged in all
    recent_s: float  # and within the span
    requests: int  # within it

    @staticmethod
    def of(first: _Look, last: _Look) -> _Span:
        told = {task.account: task for task in first.status.tasks if task.account is not None}
        served = [task for task in last.status.tasks if task.account is not None]
        former = {each.account: told[each.account].with_canary_of(each) for each in served if each.account in told}
        now, before = [each.with_canary for each in served], former.values()
        total = sum(task.service_s for task in now)
        recent = total - sum(task.service_s for task in before)
        requests = sum(task.requests for task in now) - sum(task.requests for task in before)
        return _Span(last.status, last.at - first.at, first.status, former, total, recent, requests)


class History:
    """What backbones told within the last seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._looks: dict[str, deque[_Look]] = {}
        self._spans: dict[str, _Span] = {}  # worked out since the last look

    def add(self, status: BackboneStatus, at: float) -> None:
        """Enter what a backbone tells now; what another process of it told is dropped."""
        looks = self._looks.setdefault(status.name, deque())
        if looks and _process(looks[-1].status) != _process(status):
            looks.clear()
        looks.append(_Look(at, status))
        while len(looks) > 2 and looks[1].at <= at - self.window_s:
            looks.popleft()
        self._spans.pop(status.name, None)

    def forget_others(self, backbones: Iterable[str]) -> None:
        """Of backbones that are no more."""
        for name in self._looks.keys() - set(backbones):
            del self._looks[name]
            self._spans.pop(name, None)

    def latest(self) -> dict[str, BackboneStatus]:
        """What each told last, by name."""
        return {name: looks[-1].status for name, looks in self._looks.items()}

    def backbone(self, name: str, state: str = "serving", error: str = "") -> BackboneRow:
        """A backbone's row."""
        span = self._span(name)
        if span is None:
            return BackboneRow(backbone=name, state=state, error=error)
        now, before = span.now, span.before
        row = BackboneRow(backbone=name, state=state, error=error, **now.model_dump(include=BACKBONE_FIELDS))
        row.tasks = len(now.tasks)
        if span.seconds > 0:
            batches = now.batches - before.batches
            row.busy = min(1.0, (now.busy_s - before.busy_s) / span.seconds)
            row.batch_items = (now.items - before.items) / batches if batches else None
            row.requests_per_s = span.requests / span.seconds
        return row

    def task(self, task: TaskStatus) -> TaskRow:
        """A task's row."""
        row = TaskRow(task=task.name, **task.model_dump(include=TASK_FIELDS))
        span, task = self._span(task.backbone), task.with_canary
        if task.account is None or span is None:
            return row
        row.queued, row.requests, row.misses, row.service_s = task.queued, task.requests, task.misses, task.service_s
        row.failures = sum(task.failures.values())
        row.share_total = _part(task.service_s, span.service_s)
        mine = span.former.get(task.account)
        if mine is not None and span.seconds > 0:
            requests = task.requests - mine.requests
            row.requests_per_s, row.misses_per_s = requests / span.seconds, (task.misses - mine.misses) / span.seconds
            row.wait_ms = 1000 * (task.queue_s - mine.queue_s) / requests if requests else None
            row.share = _part(task.service_s - mine.service_s, span.recent_s)
        return row

    def _span(self, backbone: str) -> _Span | None:
        looks = self._looks.get(backbone)
        if not looks:
            return None
        if backbone not in self._spans:
            self._spans[backbone] = _Span.of(looks[0], looks[-1])
        return self._spans[backbone]


BACKBONE_FIELDS = {"family", "model", "dtype", "pid", "up_s", "queued", "running", "busy_s"}
TASK_FIELDS = {"backbone", "state", "error", "version", "weight", "slo_ms", "adapter_in_memory"}


def _process(status: BackboneStatus) -> tuple[int, float]:
    return status.pid, status.started_at


def _part(own: float, total: float) -> float | None:
    return own / total if total > 0 else None
