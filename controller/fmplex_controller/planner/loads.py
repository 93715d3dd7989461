"""What backbones and servers carry, and whether more fits.

A backbone with the aggregate demand of its tasks runs batches of b rows in T(b) seconds, the mean of its tasks'
latencies at b rows, each by its part of the rows. Its utilisation u is the aggregate rate over the throughput b / T(b),
and a request is there for about T(b) (1 + 1 / (1 - u)): its own batch, and a wait that is one batch where little is
asked and grows as queues do. Of the batch sizes up to Bmax at which the tightest SLO has room for that, the one with
the lowest utilisation counts. A server that runs p backbones side by side bears p times the cap together.

Batches of mixed lengths are cut into passes, so that the mean over the lengths holds but for the passes' fixed part,
which the cap leaves room for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fmplex_controller.planner.situation import Backbone, Binding, Model, Server, Situation, Task

CAP = 0.8  # of a backbone's capacity: beyond, queues grow
LEAST_RATE = 1e-9  # rows per second of a task that nobody asks: it has a latency all the same
NEAR = 1e-9  # differences below are rounding
SHARE_STEP = 0.02  # of a task's load


def batch_sizes(most: int) -> tuple[int, ...]:
    """Powers of two up to a number, and that number."""
    return (*(2**power for power in range(most.bit_length()) if 2**power < most), most)


class Demand:
    """A task's demand as a backbone of its model sees it: for each batch size the seconds a second's rows take."""

    __slots__ = ("_sizes", "cost", "is_slo_out_of_reach", "memory", "name", "rate", "size", "slo")

    def __init__(self, task: Task, model: Model) -> None:
        sizes = batch_sizes(model.max_batch)
        self.name, self.memory, self.rate = task.name, task.memory, max(task.rate, LEAST_RATE)
        latencies = [model.latency(size, task.tokens) for size in sizes]
        self.cost = [self.rate * seconds for seconds in latencies]
        self.is_slo_out_of_reach = task.slo is not None and 2 * min(latencies) > task.slo
        self.slo = math.inf if task.slo is None or self.is_slo_out_of_reach else task.slo
        self._sizes = sizes
        self.size = self.size_of(1.0)

    def size_of(self, share: float) -> float:
        """The part of an empty backbone's capacity that a part of this demand takes."""
        return utilisation([share * each for each in self.cost], share * self.rate, self.slo, self._sizes)


def utilisation(cost: Sequence[float], rate: float, slo: float, sizes: Sequence[int]) -> float:
    """The part of a backbone's capacity that a demand takes; infinite where no batch size meets the SLO.

    Args:
        cost: for each of `sizes`, the sum of rate * latency of the tasks.
        rate: of all of them, in rows per second.
    """
    allowed, least = slo * rate * (1 + NEAR), math.inf
    for each, size in zip(cost, sizes, strict=True):  # a loop: this is most of what planning takes
        used = each / size
        if used < least and (slo == math.inf or (used < 1 and each * (1 + 1 / (1 - used)) <= allowed)):
            least = used
    return least


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a task's load."""

    demand: Demand
    share: float
    reason: str


class Load:
    """A backbone and what is bound to it."""

    def __init__(self, backbone: Backbone, model: Model, site: Site, cap: float = CAP) -> None:
        self.backbone, self.model, self.site, self.cap = backbone, model, site, cap
        self.sizes = batch_sizes(model.max_batch)
        self.parts: dict[str, Part] = {}
        self.cost = [0.0] * len(self.sizes)
        self.rate, self.slo = 0.0, math.inf
        self.used = 0.0  # of its capacity; more than 1 where more is asked of it than it can do
        self.busy = 0.0  # the part of the time that it runs

    @property
    def is_sound(self) -> bool:
        """Whether what is bound to it is within its limits; memory is its server's."""
        return self.used <= self.cap + NEAR and len(self.parts) <= self.model.slots

    @property
    def asked(self) -> float:
        """The part of its capacity that is asked for, whatever the SLOs are; more than 1 where it cannot keep up."""
        return utilisation(self.cost, self.rate, math.inf, self.sizes) if self.parts else 0.0

    def with_more(self, demand: Demand, share: float = 1.0) -> float | None:
        """Its utilisation with this demand too; None where that does not fit."""
        if demand.name in self.parts or len(self.parts) >= self.model.slots or self.site.free < demand.memory:
            return None
        cost = [own + share * more for own, more in zip(self.cost, demand.cost, strict=True)]
        used = utilisation(cost, self.rate + share * demand.rate, min(self.slo, demand.slo), self.sizes)
        if used > self.cap + NEAR or self.site.used - self.busy + used > self.site.bears + NEAR:
            return None
        return used

    def most_of(self, demand: Demand, least: float) -> float:
        """The largest share of a demand that fits, to a fiftieth; 0 where that is less than `least`."""
        if self.with_more(demand, least) is None:
            return 0.0
        low, high = least, 1.0
        while high - low > SHARE_STEP:
            middle = (low + high) / 2
            low, high = (middle, high) if self.with_more(demand, middle) is not None else (low, middle)
        return low

    def add(self, part: Part) -> None:
        """Bind a part of a task's load to it, whether that fits or not."""
        demand, share = part.demand, part.share
        self.parts[demand.name] = part
        self.cost = [own + share * more for own, more in zip(self.cost, demand.cost, strict=True)]
        self.rate += share * demand.rate
        self.slo = min(self.slo, demand.slo)
        self.site.free -= demand.memory
        self._set_used()

    def remove(self, task: str) -> Part:
        """Take a task away; sums are made anew, so that no rounding is left behind."""
        part = self.parts.pop(task)
        parts = self.parts.values()
        self.cost = [math.fsum(each.share * each.demand.cost[at] for each in parts) for at in range(len(self.sizes))]
        self.rate = math.fsum(each.share * each.demand.rate for each in parts)
        self.slo = min((each.demand.slo for each in parts), default=math.inf)
        self.site.free += part.demand.memory
        self._set_used()
        return part

    def _set_used(self) -> None:
        self.used = utilisation(self.cost, self.rate, self.slo, self.sizes) if self.parts else 0.0
        self.busy = min(self.used, 1.0)
        self.site.used = sum(load.busy for load in self.site.loads)


class Site:
    """A server and the backbones on it."""

    def __init__(self, server: Server, cap: float = CAP) -> None:
        self.server, self.cap = server, cap
        self.free = server.memory  # bytes
        self.loads: list[Load] = []
        self.used = 0.0  # the parts of the time that its backbones run, together
        self.bears = cap * server.parallel  # of that

    @property
    def is_sound(self) -> bool:
        """Whether its backbones are within its limits together."""
        return self.free >= 0 and self.used <= self.bears + NEAR


class Fleet:
    """All servers, their backbones and the demands, to be changed in place.

    Args:
        cap: the part of a backbone's capacity that may be used.
        caps: the same of these backbones alone.
    """

    def __init__(
        self, situation: Situation, cap: float = CAP, caps: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        self.cap, self.caps = cap, caps
        self.models = {model.name: model for model in situation.models}
        self.sites = {server.name: Site(server, cap) for server in situation.servers}
        self.taken = situation.taken
        self.loads: dict[str, Load] = {}
        self.by_model: dict[str, list[Load]] = {model.name: [] for model in situation.models}
        tasks = sorted(situation.tasks, key=lambda task: task.name)
        self.demands = {task.name: Demand(task, self.models[task.model]) for task in tasks}
        self.model_of = {task.name: task.model for task in tasks}
        for backbone in situation.backbones:
            self.start(backbone)
        for binding in sorted(situation.bindings, key=lambda each: each.task):
            if binding.task in self.demands:
                part = Part(self.demands[binding.task], binding.share, binding.reason)
                self.loads[binding.backbone].add(part)

    def start(self, backbone: Backbone) -> Load:
        """Put a backbone on its server, whether there is room or not."""
        site = self.sites[backbone.server]
        load = self.loads[backbone.name] = Load(backbone, self.models[backbone.model], site, self._cap(backbone))
        site.loads.append(load)
        self.by_model[backbone.model].append(load)
        site.free -= load.model.memory
        return load

    def _cap(self, backbone: Backbone) -> float:
        return self.caps.get(backbone.name, self.cap)

    def stop(self, load: Load) -> None:
        """Take a backbone that has no tasks away."""
        assert not load.parts
        del self.loads[load.backbone.name]
        load.site.loads.remove(load)
        self.by_model[load.backbone.model].remove(load)
        load.site.free += load.model.memory

    def of_model(self, model: str) -> list[Load]:
        """Its backbones, the fullest first."""
        return sorted(self.by_model[model], key=lambda load: (-load.used, load.backbone.name))

    def bindings(self) -> tuple[Binding, ...]:
        """All of them, in order of tasks and backbones."""
        found = [
            Binding(name, load.backbone.name, part.share, part.reason)
            for load in self.loads.values()
            for name, part in load.parts.items()
        ]
        return tuple(sorted(found, key=lambda each: (each.task, each.backbone)))

    def free_name(self, model: str) -> str:
        """The name of another backbone of a model."""
        label, number = self.models[model].label or model, 2
        while (name := f"{label}-{number}") in self.loads or name in self.taken:
            number += 1
        return name
