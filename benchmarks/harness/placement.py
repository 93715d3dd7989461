"""For the planner's benchmark: random situations, the least backbones by trying everything, co-located instances."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache

from fmplex_backend.families.passes import plan_passes
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.simulator import Arrival, Served
from fmplex_backend.types import PassShape
from fmplex_controller.planner.loads import CAP, NEAR, Demand, batch_sizes, utilisation
from fmplex_controller.planner.situation import Backbone, Binding, Latency, Model, Server, Situation, Task

TOKENS = (8, 16, 32, 64, 128)
SLOS = (None, 0.1, 0.2, 0.5)


def affine(fixed: float, per_token: float) -> Latency:
    """Seconds of a batch: `fixed`, and `per_token` for each token of its rows."""
    return lambda rows, tokens: fixed + per_token * rows * tokens


def random_situation(
    seed: int, *, tasks: int, servers: int, models: int, load: float, backbones: int = 0, room: int = 8
) -> Situation:
    """Tasks with rates of a Pareto distribution that take `load` of the servers' capacity together, each on its own.

    Args:
        backbones: that are there, evenly over servers and models; the tasks are bound to them at random.
        room: backbones that a server's memory holds.
    """
    rng = random.Random(seed)
    kinds = tuple(
        Model(f"m{number}", 1000, affine(rng.uniform(1e-3, 1e-2), rng.uniform(1e-5, 1e-4))) for number in range(models)
    )
    sites = tuple(Server(f"s{number}", 1000 * room + 2000) for number in range(servers))
    drawn = [
        Task(
            f"t{number}",
            rng.choice(kinds).name,
            min(rng.paretovariate(1.5), 50.0),
            rng.choice(TOKENS),
            rng.choice(SLOS),
            rng.randrange(20),
        )
        for number in range(tasks)
    ]
    by_name = {model.name: model for model in kinds}
    scale = load * servers / sum(Demand(task, by_name[task.model]).size for task in drawn)
    scaled = tuple(Task(task.name, task.model, task.rate * scale, task.tokens, task.slo, task.memory) for task in drawn)
    there = tuple(Backbone(f"b{number}", f"m{number % models}", f"s{number % servers}") for number in range(backbones))
    own = {model.name: [each.name for each in there if each.model == model.name] for model in kinds}
    bound = tuple(Binding(task.name, rng.choice(own[task.model])) for task in scaled) if there else ()
    return Situation(sites, kinds, scaled, there, bound)


def least_backbones(situation: Situation) -> int:
    """The fewest backbones that bear the tasks, each wholly on one, with a server's whole capacity and memory for each.

    By dynamic programming over all subsets of tasks: for a dozen of them at most. Servers must be alike, as many as are
    needed, and room for one backbone each.
    """
    return sum(_least_of(situation, model) for model in situation.models)


def _least_of(situation: Situation, model: Model) -> int:
    demands = [Demand(task, model) for task in situation.tasks if task.model == model.name]
    sizes, memory = batch_sizes(model.max_batch), situation.servers[0].memory

    def fits(subset: int) -> bool:
        own = [demand for at, demand in enumerate(demands) if subset >> at & 1]
        cost = [sum(demand.cost[at] for demand in own) for at in range(len(sizes))]
        used = utilisation(cost, sum(each.rate for each in own), min(each.slo for each in own), sizes)
        return used <= CAP + NEAR and model.memory + sum(each.memory for each in own) <= memory

    sound = {subset for subset in range(1, 1 << len(demands)) if fits(subset)}

    @cache
    def least(left: int) -> int:
        if not left:
            return 0
        lowest = left & -left  # the first task that is left is on some backbone: with which others?
        rest, found, other = left ^ lowest, 1 << 30, left ^ lowest
        while True:
            if other | lowest in sound:
                found = min(found, 1 + least(rest ^ other))
            if not other:
                return found
            other = (other - 1) & rest

    return least((1 << len(demands)) - 1)


def colocated(arrivals: Sequence[Arrival], instance_of: Mapping[int, int], cost: CostModel, most: int) -> list[Served]:
    """Instances that share one device as they come: the one whose first request waits longest runs its batch next.

    What running side by side costs beside that, such as caches and switches, is left out, in the instances' favour.

    Args:
        instance_of: by task, its instance.
        most: rows of a batch; those of one instance share a batch, others do not.
    """
    coming = deque(sorted(arrivals, key=lambda arrival: arrival.time))
    queues: dict[int, deque[Arrival]] = {instance: deque() for instance in instance_of.values()}
    heads: list[tuple[float, int]] = []  # arrival of each queue's first request, and the instance
    served: list[Served] = []
    now = 0.0
    while coming or heads:
        if not heads:
            now = max(now, coming[0].time)
        while coming and coming[0].time <= now:
            arrival = coming.popleft()
            own = queues[instance_of[arrival.task]]
            if not own:
                heapq.heappush(heads, (arrival.time, instance_of[arrival.task]))
            own.append(arrival)
        _, instance = heapq.heappop(heads)
        queue = queues[instance]
        batch = [queue.popleft() for _ in range(min(most, len(queue)))]
        lengths = [each.tokens for each in batch]
        for rows in plan_passes(lengths, cost.predict):
            longest = max(lengths[row] for row in rows)
            now += cost.predict(PassShape(len(rows) * longest, longest, 0))
        served += [Served(each, now) for each in batch]
        if queue:
            heapq.heappush(heads, (queue[0].time, instance))
    return served
