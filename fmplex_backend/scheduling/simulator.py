"""Backbones on simulated time: the real schedulers, with passes that take as long as a cost model says.

Nothing but the passes' time is simulated. What a server adds to a request (its way there and back, the time its batch
waits for the reply thread) is the caller's to add.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fmplex_backend.scheduling import POLICIES
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.scheduler import Scheduler
from fmplex_backend.types import PassShape, Predict, Request, Vfm, Work

# Lengths of a batch's rows -> the rows of each pass, as indices into the lengths (families.passes.plan_passes).
PlanPasses = Callable[[Sequence[int], Predict], Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of one row: when it arrives (seconds), at which task (an index), with how many tokens."""

    time: float
    task: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """An arrival, and when the batch that it was in had run (seconds)."""

    arrival: Arrival
    finish: float


def single_pass(lengths: Sequence[int], predict: Predict) -> list[list[int]]:
    """The whole batch in one pass, padded to its longest row."""
    return [list(range(len(lengths)))]


def simulate(
    arrivals: Sequence[Arrival],
    weights: Sequence[float],
    cost: CostModel,
    *,
    policy: str = "bfq",
    backbones: int = 1,
    max_items: int = 32,
    efficiency: float = 1.0,
    plan_passes: PlanPasses = single_pass,
) -> list[Served]:
    """Serve all arrivals on backbones that are alike.

    Args:
        arrivals: in any order.
        weights: of the tasks.
        cost: how long a pass really takes. Each scheduler estimates with a copy that goes on being fitted.
        policy: one of POLICIES.
        backbones: task t is served by backbone t % backbones.
        max_items: Bmax of each.
        efficiency: the part of a full batch's throughput at which a batch ends; 1: at none.
        plan_passes: how a batch is cut into passes.

    Returns:
        Every arrival once, backbone after backbone, in the order in which its batches finish.
    """
    shares: list[list[Arrival]] = [[] for _ in range(backbones)]
    for arrival in sorted(arrivals, key=lambda arrival: arrival.time):
        shares[arrival.task % backbones].append(arrival)
    served: list[Served] = []
    for share in shares:
        estimates = copy.deepcopy(cost)  # fitted to the passes, as on a server
        scheduler = POLICIES[policy](estimates, max_items=max_items, efficiency=efficiency)
        served += _Backbone(weights, cost, scheduler, plan_passes).run(share)
    return served


class _Backbone:
    """One backbone: a scheduler, and a clock that moves on by the time each batch takes."""

    def __init__(
        self, weights: Sequence[float], cost: CostModel, scheduler: Scheduler, plan_passes: PlanPasses
    ) -> None:
        self.cost = cost
        self.scheduler, self.estimates = scheduler, scheduler.cost
        self.plan_passes = plan_passes
        self.vfms = [Vfm(task, f"task{task}", weight=weight) for task, weight in enumerate(weights)]
        self.waiting: dict[Request, Arrival] = {}
        self.now = 0.0

    def run(self, arrivals: Sequence[Arrival]) -> Iterator[Served]:
        """Serve arrivals in order of time; ends when the last one has been served."""
        coming = deque(arrivals)
        while coming or self.waiting:
            if not self.waiting:
                self.now = max(self.now, coming[0].time)
            while coming and coming[0].time <= self.now:
                self.admit(coming.popleft())
            yield from self.step()

    def admit(self, arrival: Arrival) -> None:
        """Queue a request."""
        request = _request(self.vfms[arrival.task], arrival)
        self.waiting[request] = arrival
        self.scheduler.admit(request)

    def step(self) -> list[Served]:
        """Choose, run and settle one batch."""
        batch = self.scheduler.choose(self.now)
        elapsed = self.run_passes([self.waiting[request].tokens for request in batch])
        self.scheduler.measure([(request, request.work) for request in batch], elapsed)
        self.scheduler.settle(batch)
        self.now += elapsed
        return [Served(self.waiting.pop(request), self.now) for request in batch]

    def run_passes(self, lengths: Sequence[int]) -> float:
        """The seconds that a batch of rows of these lengths takes, padding included."""
        total = 0.0
        passes = self.plan_passes(lengths, self.estimates.predict)
        for rows in passes:
            longest = max(lengths[row] for row in rows)
            shape = PassShape(len(rows) * longest, longest, 0)
            elapsed = self.cost.predict(shape)
            self.estimates.observe(shape, len(rows), elapsed)
            total += elapsed
        self.estimates.observe_batch(len(passes), 0.0)
        return total


def _request(vfm: Vfm, arrival: Arrival) -> Request:
    request = Request(vfm, {}, (), arrival.time, lambda *_: None)  # nobody waits for the reply
    request.work = Work(1, arrival.tokens, arrival.tokens**2)
    return request
