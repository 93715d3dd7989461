"""Backbones that serve Poisson arrivals in batches by a clock of the test's own, and tell of it as real ones do."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from live_server import status, task

from fmplex_backend.repository.reader import RepositoryReader
from fmplex_backend.status import BackboneStatus, Cost, TaskStatus

MAX_BATCH, TOKENS = 16, 10


@dataclass
class Backbone:
    """First come, first served, up to MAX_BATCH rows at a time. Times are in seconds."""

    name: str
    cost: Cost
    slos: Mapping[str, float]
    queue: deque[tuple[float, str]] = field(default_factory=deque)  # when each row came, and its task
    running: list[tuple[float, str]] = field(default_factory=list)
    begun_at: float = 0.0
    busy_s: float = 0.0
    batches: int = 0
    served: Counter[str] = field(default_factory=Counter)  # rows, by task
    late: Counter[str] = field(default_factory=Counter)
    service_s: dict[str, float] = field(default_factory=dict)

    def seconds(self, rows: int) -> float:
        """Of a batch."""
        return self.cost.once + rows * TOKENS * self.cost.per_token

    def serve(self, arrivals: list[tuple[float, str]], end: float) -> None:
        """What comes, in order of time, until then."""
        coming = deque(arrivals)
        free_at = self.begun_at + self.seconds(len(self.running)) if self.running else self.begun_at
        while True:
            if self.running:
                if free_at > end:
                    break
                self._finish(free_at)
            while coming and coming[0][0] <= free_at:
                self.queue.append(coming.popleft())
            if not self.queue:
                if not coming:
                    break
                free_at = coming[0][0]
                continue
            self.running = [self.queue.popleft() for _ in range(min(MAX_BATCH, len(self.queue)))]
            self.begun_at, free_at = free_at, free_at + self.seconds(len(self.running))
        self.queue.extend(coming)
        if not self.running:
            self.begun_at = end

    def _finish(self, at: float) -> None:
        seconds = at - self.begun_at
        self.busy_s, self.batches = self.busy_s + seconds, self.batches + 1
        for came, name in self.running:
            self.served[name] += 1
            self.late[name] += at - came > self.slos.get(name, float("inf"))
            self.service_s[name] = self.service_s.get(name, 0.0) + seconds / len(self.running)
        self.running = []

    def told(self, bound: list[str], now: float) -> BackboneStatus:
        """At a moment up to which it has served, of the tasks that are bound to it then."""
        queued, running = (Counter(name for _, name in rows) for rows in (self.queue, self.running))
        tasks = [self._task(name, queued[name], running[name]) for name in bound]
        own = {
            "name": self.name,
            "cost": self.cost,
            "max_batch": MAX_BATCH,
            "memory": 1000,
            "machine_memory": 100_000,
            "cores": 8,
            "threads": 1,
            "pid": 1,
            "busy_s": self.busy_s,
            "running_s": now - self.begun_at if self.running else 0.0,
            "items": self.served.total(),
            "batches": self.batches,
            "queued": queued.total(),
            "running": running.total(),
        }
        return status(*tasks).model_copy(update=own)

    def _task(self, name: str, queued: int, running: int) -> TaskStatus:
        served = self.served[name]
        return task(
            name,
            backbone=self.name,
            requests=served,
            items=served,
            tokens=float(TOKENS * served),
            queued=queued,
            running=running,
            misses=self.late[name],
            service_s=self.service_s.get(name, 0.0),
        )


@dataclass
class PoissonServer:
    """All backbones of a repository, asked by Poisson processes wherever their tasks are bound.

    Args:
        per_second: rows that a backbone serves in full batches.
        loads: by task, the part of that which is asked for.
        slos: by task, in seconds.
        step_s: between two looks at it.
    """

    root: Path
    per_second: float
    loads: Mapping[str, float]
    slos: Mapping[str, float]
    seed: int
    step_s: float = 0.2
    now: float = 0.0
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        batch_s = MAX_BATCH / self.per_second
        self.cost = Cost(
            fixed=0.1 * batch_s,
            per_token=0.9 * batch_s / MAX_BATCH / TOKENS,
            per_area=0.0,
            per_group=0.0,
            once=0.1 * batch_s,
        )
        self.backbones = {
            name: Backbone(name, self.cost, self.slos) for name in RepositoryReader(self.root).backbones()
        }
        self._coming = {name: self._times(name) for name in self.loads}
        self.places: dict[str, str] = {}
        self._places_of = -1  # as of so many loads
        self._next = {name: next(times) for name, times in self._coming.items()}

    def _times(self, name: str) -> Iterator[float]:
        chance = random.Random(f"{self.seed} {name}")
        gaps = iter(lambda: chance.expovariate(self.per_second * self.loads[name]), None)
        return itertools.accumulate(gaps)

    def told(self) -> list[BackboneStatus]:
        """What all backbones tell after another `step_s`."""
        self.now += self.step_s
        if self._places_of != len(self.calls):
            self._places_of = len(self.calls)
            self.places = {name: backbone for name, (backbone, _) in RepositoryReader(self.root).tasks().items()}
        coming: dict[str, list[tuple[float, str]]] = {name: [] for name in self.backbones}
        for name, backbone in self.places.items():
            while self._next[name] <= self.now:
                coming[backbone].append((self._next[name], name))
                self._next[name] = next(self._coming[name])
        for name, backbone in self.backbones.items():
            backbone.serve(sorted(coming[name]), self.now)
        bound = {name: [task for task in self.loads if self.places[task] == name] for name in self.backbones}
        return [backbone.told(bound[name], self.now) for name, backbone in self.backbones.items()]

    # -- as `Triton` has it

    def load(self, name: str) -> None:
        """A task was bound to another backbone."""
        self.calls.append(name)

    def status(self, backbone: str, name: str = "", timeout: float = 0) -> BackboneStatus:
        """Every backbone serves every task."""
        return status(task(name, backbone=backbone))

    def prefetch(self, backbone: str, name: str, timeout: float = 0) -> BackboneStatus:
        """None is refused."""
        return status().model_copy(update={"prefetched": ""})
