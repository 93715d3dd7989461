"""A server and its repository as a planner sees them, and what comes of its plan."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from fmplex_backend.errors import TaskProblem
from fmplex_backend.profiles import find_profile
from fmplex_backend.repository.binding import model_key
from fmplex_backend.repository.directory import UNLOADED
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.status import BackboneStatus, Cost
from fmplex_controller.planner.loads import Fleet
from fmplex_controller.planner.placing import Placing
from fmplex_controller.planner.situation import Backbone, Binding, Latency, Model, Server, Situation, Task
from fmplex_controller.sidecar.demand import Demand, Demands

log = logging.getLogger("fmplex.controller")

HERE = "this server"
DEFAULT_TOKENS = 16.0  # of a row of a task that nobody has asked yet
LEAST_LOAD = 0.01  # rows per second of some task: below, nothing tells where there is room
MOST_PARALLEL = 64
MOST_SLOWNESS = 4.0
LEAST_SECONDS = 0.1  # per second that a backbone is at work, to tell how slow it is


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server has for backbones; None: as its backbones tell."""

    memory: int | None = None  # bytes
    parallel: float | None = None  # backbones that run side by side without slowing each other down

    @staticmethod
    def given(gib: float | None, parallel: float | None) -> Limits:
        """As options have them: memory in GiB."""
        return Limits(None if gib is None else round(gib * 2**30), parallel)


@dataclass(frozen=True, slots=True)
class Known:
    """A repository's backbones that answer, and all tasks on them."""

    statuses: Mapping[str, BackboneStatus]
    model_of: Mapping[str, str]  # by backbone
    specs: Mapping[str, tuple[str, TaskSpec]]  # by task: its backbone, and its entry
    taken: frozenset[str]  # names that no new backbone may have
    asked: frozenset[str] = frozenset()  # backbones that have told something, also where the repository has none

    @property
    def grouped(self) -> frozenset[str]:
        """Tasks of groups: a group asks one backbone for all of its tasks."""
        return frozenset(name for status in self.statuses.values() for each in status.tasks for name in each.members)

    @property
    def templates(self) -> Mapping[str, str]:
        """By model, the backbone that new ones are written after: the first by name."""
        return {model: name for name, model in sorted(self.model_of.items(), reverse=True)}


def read(root: Path, statuses: Iterable[BackboneStatus], *, reuse: bool = True) -> Known:
    """Read a repository, as far as its backbones answer; what cannot be read is left out.

    Args:
        reuse: whether a new backbone may have the name of one that was put away, which is then taken again.
    """
    told, reader = {status.name: status for status in statuses}, RepositoryReader(root)
    backbones = [name for name in reader.backbones() if name in told]
    specs = {
        name: (backbone, entry)
        for backbone in backbones
        for name, entry in Repository(root, backbone).read().items()
        if isinstance(entry, TaskSpec)
    }
    model_of = {name: model_key(root, name) for name in backbones}
    put_away = {name for name in reader.backbones() if reuse and (root / name / UNLOADED).exists()}
    taken = frozenset({*reader.names()} - {name for name in put_away if model_key(root, name) in model_of.values()})
    return Known({name: told[name] for name in backbones}, model_of, specs, taken, frozenset(told))


def situation(
    known: Known, demands: Demands, limits: Limits, slowness: Mapping[str, float] = MappingProxyType({})
) -> Situation:
    """What a planner goes by.

    Args:
        slowness: by model, the factor by which its rows take longer than its cost model says, see `slowness`.
    """
    templates = sorted(known.templates.items())
    models = tuple(_model(model, known.statuses[name], name, slowness.get(model, 1.0)) for model, name in templates)
    tasks = tuple(
        _task(spec, known.model_of[backbone], demands.of(name, backbone))
        for name, (backbone, spec) in sorted(known.specs.items())
    )
    backbones = tuple(Backbone(name, model, HERE) for name, model in sorted(known.model_of.items()))
    bindings = tuple(Binding(name, backbone) for name, (backbone, _) in sorted(known.specs.items()))
    return Situation((_server(known, limits),), models, tasks, backbones, bindings, known.taken)


def slowness(known: Known, demands: Demands, backbone: str) -> float | None:
    """The factor by which a backbone that is always at work takes longer than its cost model says, 1 at least.

    Ask while it runs large batches. What it takes beside those of its cost model is for adapters, and for what else
    runs on its device. None where nothing tells.
    """
    status = known.statuses[backbone]
    model = _model(known.model_of[backbone], status, backbone, 1.0)
    own = [demands.of(name, backbone) for name, (place, _) in known.specs.items() if place == backbone]
    seconds = [each.served * model.latency(model.max_batch, each.tokens) / model.max_batch for each in own]
    predicted = sum(seconds)
    if predicted < LEAST_SECONDS:
        return None
    return min(MOST_SLOWNESS, max(1.0, sum(each.service for each in own) / predicted))


def wait_s(known: Known, demands: Demands, backbone: str, slower: float) -> float:
    """Seconds that a backbone takes for what waits and runs on it, in full batches; `slower` as `slowness` has it.

    What tasks that are bound elsewhere now have left there counts too, each request as an average row of the others.
    """
    status = known.statuses[backbone]
    model = _model(known.model_of[backbone], status, backbone, slower)
    own = [name for name, (place, _) in known.specs.items() if place == backbone]
    rows = {name: demands.unserved(name, backbone) for name in own}
    per_row = {
        name: model.latency(model.max_batch, demands.of(name, backbone).tokens or DEFAULT_TOKENS) / model.max_batch
        for name in own
    }
    seconds = sum(rows[name] * per_row[name] for name in own)
    if others := _waiting_of_others(status, own):
        usual = model.latency(model.max_batch, DEFAULT_TOKENS) / model.max_batch
        seconds += others * (sum(per_row.values()) / len(own) if own else usual)
    return max(0.0, seconds - status.running_s)


def _waiting_of_others(status: BackboneStatus, own: Collection[str]) -> int:
    """Requests that wait or run on a backbone and are none of these tasks'."""
    tasks = [task.with_canary for task in status.tasks if task.name in own and task.state != "leaving"]
    return max(0, status.queued + status.running - sum(task.queued + task.running for task in tasks))


def place(known: Known, demands: Demands, task: str) -> str | None:
    """Where a task that nobody has asked yet goes, of these backbones; None where their load does not tell."""
    if not known.statuses:
        return None
    seen = situation(known, demands, Limits())
    if not any(each.rate > LEAST_LOAD for each in seen.tasks) or len(seen.models) != 1:
        return None
    new = Task(task, seen.models[0].name, 0.0, DEFAULT_TOKENS)
    tasks = tuple(each for each in seen.tasks if each.name != task)
    bindings = tuple(each for each in seen.bindings if each.task != task)
    fleet = Fleet(replace(seen, tasks=(*tasks, new), bindings=bindings))
    Placing(fleet, split=False, start=False).place(fleet.demands[task])  # the others stay where they are
    return next((name for name, load in fleet.loads.items() if task in load.parts), None)


def latency(cost: Cost | CostModel) -> Latency:
    """Of batches of rows of one length, by a fitted cost model."""
    once = cost.once if isinstance(cost, Cost) else cost.once(0)

    def seconds(rows: int, tokens: float) -> float:
        return once + rows * tokens * (cost.per_token + cost.per_area * tokens)

    return seconds


def _model(model: str, status: BackboneStatus, first: str, slower: float) -> Model:
    """By its profile on this hardware; without one by the cost model that a backbone has fitted to its load."""
    try:
        profile = find_profile(status.model, status.dtype, status.hardware)
    except TaskProblem as problem:  # what the backbone has learnt will do
        log.warning("%s", problem)
        profile = None
    cost = profile.cost() if profile is not None else status.cost or CostModel()
    memory = status.memory or (profile.memory if profile is not None else 0)
    once = latency(cost)
    timed = once if slower == 1 else lambda rows, tokens: slower * once(rows, tokens)
    return Model(model, memory, timed, status.max_batch or 32, status.slots, first)


def _task(spec: TaskSpec, model: str, demand: Demand) -> Task:
    return Task(spec.name, model, demand.rows, demand.tokens or DEFAULT_TOKENS, spec.slo, spec.version.size)


def _server(known: Known, limits: Limits) -> Server:
    statuses = known.statuses.values()
    memory = limits.memory
    if memory is None:
        memory = max((status.machine_memory for status in statuses), default=0)
    parallel = limits.parallel
    if parallel is None:
        parallel = max((_side_by_side(status) for status in statuses), default=1.0)
    return Server(HERE, memory, parallel)


def _side_by_side(status: BackboneStatus) -> float:
    """How many backbones like this one have cores of their own."""
    return max(1.0, min(MOST_PARALLEL, status.cores / status.threads)) if status.threads else 1.0
