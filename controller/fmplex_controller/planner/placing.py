"""Where a task goes: on the fullest backbone on which it fits, else on two, else on a new one."""

from __future__ import annotations

from fmplex_controller.planner.loads import NEAR, Demand, Fleet, Load, Part, Site
from fmplex_controller.planner.situation import Backbone, Change

LEAST_SHARE = 0.05  # of a task's load that is worth a binding of its own


class Placing:
    """Binds tasks of a fleet, and starts backbones for them.

    Args:
        split: whether a task's load may be split over two backbones.
        start: whether backbones may be started.
    """

    def __init__(self, fleet: Fleet, *, split: bool, start: bool) -> None:
        self.fleet, self.split, self.may_start = fleet, split, start
        self.starts: dict[str, Change] = {}

    def place(self, demand: Demand) -> bool:
        """Bind it; whether that was possible."""
        model = self.fleet.model_of[demand.name]
        loads = self.fleet.of_model(model)
        if self._on_one(demand, loads) or (self.split and self._on_two(demand, loads)):
            return True
        if not self.may_start:
            return False
        return self._on_a_new_one(demand, model) or (self.split and self._on_two_with_a_new_one(demand, model, loads))

    def stop(self, load: Load) -> bool:
        """Take a backbone that has no tasks away; whether it is one that was there before."""
        self.fleet.stop(load)
        return self.starts.pop(load.backbone.name, None) is None

    def why_not(self, demand: Demand) -> str:
        """Why a task could not be bound."""
        model = self.fleet.models[self.fleet.model_of[demand.name]]
        if demand.size > self.fleet.cap and not self.split:
            return f"it needs {demand.size:.2f} of a backbone's capacity, of which {self.fleet.cap:g} may be used"
        if not self.may_start:
            return f"no backbone of {model.name} has room for it"
        needed = model.memory + demand.memory
        if all(site.free < needed for site in self.fleet.sites.values()):
            return f"no backbone of {model.name} has room, and no server {needed / 2**20:.0f} MiB for another one"
        return f"no backbone of {model.name} has room, and no server has time for another one"

    def _on_one(self, demand: Demand, loads: list[Load]) -> bool:
        for load in loads:
            if (used := load.with_more(demand)) is not None:
                which = f"the fullest of {len(loads)} that" if len(loads) > 1 else "it"
                load.add(Part(demand, 1.0, f"{which} has room: {used:.2f} of {self.fleet.cap:g} with it"))
                return True
        return False

    def _on_two(self, demand: Demand, loads: list[Load]) -> bool:
        """The fullest that takes a part worth a binding, and the fullest that takes the rest."""
        shares = [load.most_of(demand, LEAST_SHARE) for load in loads]
        if sum(sorted(shares)[-2:]) < 1:
            return False
        for first, most in zip(loads, shares, strict=True):
            share = min(most, 1 - LEAST_SHARE)
            if share < LEAST_SHARE or first.with_more(demand, share) is None:
                continue
            first.add(_part(demand, share, "no one backbone has room for all of it"))
            for second in loads:
                if second is not first and second.with_more(demand, 1 - share) is not None:
                    second.add(_rest(demand, 1 - share, first))
                    return True
            first.remove(demand.name)
        return False

    def _on_a_new_one(self, demand: Demand, model: str) -> bool:
        load = self._start(model, demand, 1.0)
        if load is not None:
            load.add(Part(demand, 1.0, "no backbone of its model had room"))
        return load is not None

    def _on_two_with_a_new_one(self, demand: Demand, model: str, loads: list[Load]) -> bool:
        """For what is too much for one backbone: a part where most of it fits, or on a new one too."""
        most, first = max(
            ((load.most_of(demand, LEAST_SHARE), load) for load in loads), key=lambda each: each[0], default=(0, None)
        )
        share = min(most, 1 - LEAST_SHARE)
        is_new = first is None or share < LEAST_SHARE
        if is_new:
            share = 0.5
            first = self._start(model, demand, share)
        if first is None or first.with_more(demand, share) is None:
            return False
        first.add(_part(demand, share, "it is too much for one backbone"))
        second = self._start(model, demand, 1 - share)
        if second is not None:
            second.add(_rest(demand, 1 - share, first))
            return True
        first.remove(demand.name)
        if is_new:
            self.stop(first)
        return False

    def _start(self, model: str, demand: Demand, share: float) -> Load | None:
        """A new backbone, on the server where this part of a demand fits best; None where it fits on none."""
        needed, size = self.fleet.models[model].memory + demand.memory, demand.size_of(share)
        if size > self.fleet.cap + NEAR:
            return None
        sites = [
            site
            for site in self.fleet.sites.values()
            if site.free >= needed and site.used + size <= site.bears + NEAR and site.used < site.bears - NEAR
        ]
        if not sites:
            return None
        name = min(sites, key=_best).server.name
        load = self.fleet.start(Backbone(self.fleet.free_name(model), model, name))
        reason = f"{demand.name} fits on none that is there, and best on the server {name}"
        self.starts[load.backbone.name] = Change(load.backbone, reason)
        return load


def _part(demand: Demand, share: float, why: str) -> Part:
    return Part(demand, share, f"{why}: {share:.0%} here")


def _rest(demand: Demand, share: float, first: Load) -> Part:
    return Part(demand, share, f"{share:.0%} here, the rest on {first.backbone.name}")


def _best(site: Site) -> tuple[float, int, str]:
    """Where it can be filled furthest, and of these where the least memory is to spare."""
    return -min(site.cap, site.bears - site.used), site.free, site.server.name
