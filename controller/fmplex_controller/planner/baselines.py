"""What Max-Share is compared with: an instance for each task, and tasks spread over all servers.

Both place every task anew, in order of their names, and obey the same limits.
"""

from __future__ import annotations

from fmplex_controller.planner.loads import Demand, Fleet, Load, Part, Site
from fmplex_controller.planner.situation import Backbone, Plan, Situation


def instance_per_task(situation: Situation) -> Plan:
    """Each task has a backbone of its own, or two, on the server with the most memory left."""
    fleet, unplaced = _empty(situation), {}
    for name, demand in fleet.demands.items():
        if not any(_start_for(fleet, demand, count) for count in (1, 2)):
            unplaced[name] = "no server has room for a backbone of its own"
    return _plan(fleet, unplaced)


def spread(situation: Situation) -> Plan:
    """Each task goes to a new backbone while there is room for one, then to the least used one that bears it."""
    fleet, unplaced = _empty(situation), {}
    for name, demand in fleet.demands.items():
        if _start_for(fleet, demand, 1):
            continue
        fitting = [load for load in fleet.of_model(fleet.model_of[name]) if load.with_more(demand) is not None]
        if fitting:
            fitting[-1].add(Part(demand, 1.0, "the least used"))
        else:
            unplaced[name] = "no backbone bears it"
    return _plan(fleet, unplaced)


def _empty(situation: Situation) -> Fleet:
    return Fleet(Situation(situation.servers, situation.models, situation.tasks))


def _start_for(fleet: Fleet, demand: Demand, count: int) -> bool:
    """Start so many backbones for a task alone; none where there is no room for all."""
    started: list[Load] = []
    for _ in range(count):
        load = _start(fleet, demand, 1 / count)
        if load is None:
            for each in started:
                each.remove(demand.name)
                fleet.stop(each)
            return False
        load.add(Part(demand, 1 / count, "its own"))
        started.append(load)
    return True


def _start(fleet: Fleet, demand: Demand, share: float) -> Load | None:
    model = fleet.model_of[demand.name]
    needed = fleet.models[model].memory + demand.memory
    sites = [site for site in fleet.sites.values() if site.free >= needed]
    for site in sorted(sites, key=_roomiest):
        load = fleet.start(Backbone(fleet.free_name(model), model, site.server.name))
        if load.with_more(demand, share) is not None:
            return load
        fleet.stop(load)
    return None


def _roomiest(site: Site) -> tuple[int, float, str]:
    return -site.free, site.used, site.server.name


def _plan(fleet: Fleet, unplaced: dict[str, str]) -> Plan:
    used = {name: load.used for name, load in sorted(fleet.loads.items())}
    backbones = tuple(load.backbone for _, load in sorted(fleet.loads.items()))
    return Plan(fleet.bindings(), backbones, unplaced=unplaced, used=used)
