"""How much is asked of each task, from what backbones tell of themselves again and again. Pure: time is passed in.

A backbone's counts only grow, but for those of a process or a binding that is new: two readings give a rate, and moving
averages smooth it. Of what arrives counts what was served, what was refused because the queue was full, and by how much
more waits or runs: a backbone that is beyond its capacity serves less than what is asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter

from fmplex_backend.status import BackboneStatus, TaskStatus

MEMORY_S = 5.0  # time constant of the moving averages
CARRIED_S = 2.0  # after which a backbone tells of a task that was bound to it
QUEUE_FULL = "queue_full"  # the reason of these failures


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one task on one backbone, smoothed."""

    rows: float = 0.0  # per second
    tokens: float = 0.0  # of a row; 0 where none was served yet
    queue_s: float = 0.0  # that a request waits
    misses: float = 0.0  # the part of its requests that finished after their deadline
    service: float = 0.0  # seconds of the backbone's time per second
    served: float = 0.0  # rows per second that were served, of those that were asked for


_VALUES = attrgetter(*(each.name for each in fields(Demand)))


@dataclass(slots=True)
class _Track:
    last: TaskStatus
    at: float
    demand: Demand | None = None
    seen_s: float = 0.0  # for how long it has been followed
    kept_until: float = -math.inf  # a task that was bound there a moment ago may not be told of yet


@dataclass(slots=True)
class Demands:
    """Of all tasks of a server, by (task, backbone).

    Args:
        memory_s: seconds after which what was seen counts for 1/e.
    """

    memory_s: float = MEMORY_S
    _tracks: dict[tuple[str, str], _Track] = field(default_factory=dict)

    def observe(self, status: BackboneStatus, now: float) -> None:
        """Take in what a backbone tells of all its tasks."""
        present = {(task.name, status.name): task for task in status.tasks if task.state != "leaving"}
        own = [key for key in self._tracks if key[1] == status.name]
        for key in [key for key in own if key not in present and now >= self._tracks[key].kept_until]:
            del self._tracks[key]
        for key, task in present.items():
            track = self._tracks.get(key)
            if track is None or task.requests < track.last.requests or now <= track.at:
                former = None if track is None else track.demand
                self._tracks[key] = _Track(task, now, former)
                continue
            seconds = now - track.at
            before, after = track.last.with_canary_of(task), task.with_canary
            fresh = _between(before, after, seconds, track.demand or Demand())
            self._tracks[key] = _Track(task, now, self._smoothed(track, fresh, seconds), track.seen_s + seconds)

    def of(self, task: str, backbone: str) -> Demand:
        """What was seen of a task on a backbone; nothing where it has not been followed."""
        track = self._tracks.get((task, backbone))
        return Demand() if track is None or track.demand is None else track.demand

    def unserved(self, task: str, backbone: str) -> float:
        """Rows of a task that wait or run on a backbone."""
        track = self._tracks.get((task, backbone))
        return 0.0 if track is None else _unserved(track.last.with_canary) * _per_request(track.last.with_canary)

    def requests(self, task: str, backbone: str) -> float:
        """Requests of a task per second on a backbone."""
        track = self._tracks.get((task, backbone))
        return 0.0 if track is None else self.of(task, backbone).rows / _per_request(track.last.with_canary)

    @property
    def all(self) -> Mapping[tuple[str, str], Demand]:
        """Of all that were followed."""
        return {key: track.demand for key, track in self._tracks.items() if track.demand is not None}

    def carry(self, task: str, demand: Demand, backbone: str, now: float) -> None:
        """A task was bound to another backbone, where its counts begin anew: what was seen of it goes along."""
        begun = TaskStatus(name=task, backbone=backbone, state="serving")
        self._tracks[task, backbone] = _Track(begun, now, demand, self.memory_s, now + CARRIED_S)

    def _smoothed(self, track: _Track, fresh: Demand, seconds: float) -> Demand:
        """An exponential moving average that begins with the plain mean of what was seen."""
        if track.demand is None:
            return fresh
        seen = track.seen_s + seconds
        part = math.expm1(-seconds / self.memory_s) / math.expm1(-seen / self.memory_s)
        pairs = zip(_VALUES(track.demand), _VALUES(fresh), strict=True)
        return Demand(*(old + part * (new - old) for old, new in pairs))


def _between(before: TaskStatus, after: TaskStatus, seconds: float, known: Demand) -> Demand:
    """By two readings; what no request tells of stays as it was."""
    requests, rows = after.requests - before.requests, after.items - before.items
    per_request = rows / requests if requests else _per_request(after)
    refused = max(0, after.failures.get(QUEUE_FULL, 0) - before.failures.get(QUEUE_FULL, 0))
    grown = _unserved(after) - _unserved(before)
    return Demand(
        rows=max(0.0, rows + per_request * (grown + refused)) / seconds,
        tokens=max(0.0, after.tokens - before.tokens) / rows if rows else known.tokens,
        queue_s=(after.queue_s - before.queue_s) / requests if requests else known.queue_s * (after.queued > 0),
        misses=(after.misses - before.misses) / requests if requests else 0.0,
        service=max(0.0, after.service_s - before.service_s) / seconds,
        served=rows / seconds,
    )


def _unserved(task: TaskStatus) -> int:
    return task.queued + task.running


def _per_request(task: TaskStatus) -> float:
    return task.items / task.requests if task.requests else 1.0
