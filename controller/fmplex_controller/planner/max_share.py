"""Max-Share, the placement of the FMplex paper (arXiv 2606.09643): as few backbones as bear the load.

A task is bound to a backbone of its model that is there, the fullest on which it fits; else its load is split over two
that are there; else a backbone is started on the server where it fits best (`placing`). Whether it fits is a matter of
memory and of the utilisation by everything that is bound there, at the batch size that this demand allows (`loads`).

A plan begins with what is bound now and moves only what has to move: tasks of a backbone or server beyond its limits,
and the tasks of a backbone that can be done without. What fits nowhere else stays where it is, unless memory forbids.
Rounds of this are repeated until one changes nothing, so that a plan of its own result changes nothing either. They
end: each places a task, or takes load off what is beyond its limits, or stops a backbone, and undoes none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from fmplex_controller.planner.answer import answer, places
from fmplex_controller.planner.loads import CAP, Demand, Fleet, Load, Part
from fmplex_controller.planner.placing import Placing
from fmplex_controller.planner.situation import Change, Plan, Situation


def max_share(
    situation: Situation,
    *,
    split: bool = True,
    start: bool = True,
    stop: bool = True,
    only: Collection[str] | None = None,
    pinned: Collection[str] = (),
    cap: float = CAP,
    caps: Mapping[str, float] = MappingProxyType({}),
) -> Plan:
    """Plan.

    Large tasks are placed first, small ones into what room is left; where not all can be placed, small ones first too,
    and whatever places more of them is taken.

    Args:
        split: whether a task's load may be split over two backbones; what routes requests has to support that.
        start: whether backbones may be started.
        stop: whether backbones may be stopped; of each model one stays.
        only: backbones that tasks are moved off where they are beyond their limits; all by default.
        pinned: tasks that stay where they are, unless memory forbids.
        cap: the part of a backbone's capacity that may be used.
        caps: the same of these backbones alone.
    """

    def plan(largest_first: bool) -> Plan:
        fleet = Fleet(situation, cap, caps)
        planner = _Planner(situation, fleet, split=split, start=start, stop=stop, largest_first=largest_first)
        planner.only, planner.pinned = only, pinned
        return planner.plan()

    first = plan(True)
    if not first.unplaced:
        return first
    second = plan(False)
    return second if len(second.unplaced) < len(first.unplaced) else first


def emptied(situation: Situation, backbone: str, *, pinned: Collection[str] = (), cap: float = CAP) -> Plan | None:
    """The plan by which a backbone's tasks go to others of its model and it stops; None where they have no room."""
    fleet = Fleet(situation, cap)
    planner = _Planner(situation, fleet, split=False, start=False, stop=True, largest_first=True)
    planner.pinned = pinned
    return planner.answer() if planner.empty(planner.fleet.loads[backbone]) else None


class _Planner:
    def __init__(
        self, situation: Situation, fleet: Fleet, *, split: bool, start: bool, stop: bool, largest_first: bool
    ) -> None:
        self.situation, self.fleet, self.may_stop, self.largest_first = situation, fleet, stop, largest_first
        self.only: Collection[str] | None = None
        self.pinned: Collection[str] = ()
        self.placing = Placing(self.fleet, split=split, start=start)
        self.before = places(self.fleet)
        self.stops: dict[str, Change] = {}
        self.unplaced = {name: "" for name in self.fleet.demands if name not in self.before}
        self.why: dict[str, str] = {}  # by task that moves: why it has to

    def plan(self) -> Plan:
        while True:
            freed = (self.only is None and self._unbind_for_memory()) | self._relieve()
            if self.unplaced:
                self._place_all()
            freed |= self.may_stop and self._consolidate()
            if not freed:
                break
        return self.answer()

    def answer(self) -> Plan:
        """By what the fleet has become."""
        starts = self.placing.starts
        return answer(self.situation, self.fleet, self.before, starts, self.stops, self.unplaced, self.why)

    # -- what is beyond its limits

    def _unbind_for_memory(self) -> bool:
        """Unbind tasks, the largest first, of servers that have not the memory for them and of too full backbones."""
        found = False
        for load in sorted(self.fleet.loads.values(), key=lambda load: load.backbone.name):
            while load.parts and (load.site.free < 0 or len(load.parts) > load.model.slots):
                part = max(load.parts.values(), key=lambda part: (part.demand.memory, part.demand.name))
                lacks = "memory" if load.site.free < 0 else "tags"
                self._take_off(part.demand, f"{load.backbone.name} has not enough {lacks} for it")
                self.unplaced[part.demand.name] = ""
                found = True
        return found

    def _relieve(self) -> bool:
        """Move tasks off backbones and servers that are beyond their limits, as long as one fits elsewhere."""
        found = False
        while sum(self._relieve_one(load) for load in self._beyond()):  # each of them once a turn
            found = True
        return found

    def _beyond(self) -> list[Load]:
        loads = (load for load in self.fleet.loads.values() if not (load.is_sound and load.site.is_sound))
        loads = (load for load in loads if self.only is None or load.backbone.name in self.only)
        return sorted(loads, key=lambda load: (load.is_sound, load.backbone.name))

    def _relieve_one(self, load: Load) -> bool:
        """The smallest task whose leaving is enough, else the largest that fits elsewhere; whether one has moved."""
        if load.is_sound and load.site.is_sound:  # another one's move has helped it
            return False
        capacity = "without a batch size for its tasks' SLOs" if load.used > 1e9 else f"at {load.used:.2f} of capacity"
        why = f"{load.backbone.name} is {capacity}" if not load.is_sound else "its server has not the time"
        parts = [part for part in load.parts.values() if part.demand.name not in self.pinned]
        parts.sort(key=lambda part: (part.share * part.demand.size, part.demand.name))
        enough = [part for part in parts if self._would_do(load, part)]
        return any(self._move(part.demand, why) for part in [*enough, *(p for p in reversed(parts) if p not in enough)])

    def _would_do(self, load: Load, part: Part) -> bool:
        load.remove(part.demand.name)
        does = load.is_sound and load.site.is_sound
        load.add(part)
        return does

    def _move(self, demand: Demand, why: str) -> bool:
        """To where it fits; nothing where that is nowhere."""
        former = self._take_off(demand, why)
        if self.placing.place(demand):
            return True
        for load, part in former:
            load.add(part)
        return False

    def _take_off(self, demand: Demand, why: str) -> list[tuple[Load, Part]]:
        self.why[demand.name] = why
        own = [load for load in self.fleet.loads.values() if demand.name in load.parts]
        return [(load, load.remove(demand.name)) for load in own]

    # -- tasks without a place

    def _place_all(self) -> None:
        demands = (self.fleet.demands[name] for name in self.unplaced)
        for demand in sorted(demands, key=_largest if self.largest_first else _smallest):
            if self.placing.place(demand):
                del self.unplaced[demand.name]
            else:
                self.unplaced[demand.name] = self.placing.why_not(demand)

    # -- backbones that can be done without

    def _consolidate(self) -> bool:
        """Again and again the emptiest backbone whose tasks fit on others is stopped."""
        found = False
        while any(self.empty(load) for load in self._stoppable()):
            found = True
        return found

    def _stoppable(self) -> Iterator[Load]:
        for load in sorted(self.fleet.loads.values(), key=_emptiest):
            if len(self.fleet.by_model[load.backbone.model]) > 1:
                yield load

    def empty(self, load: Load) -> bool:
        """Move a backbone's tasks to others and stop it, or leave everything as it is; whether they have room."""
        if any(name in self.pinned for name in load.parts):
            return False
        others = [each for each in self.fleet.of_model(load.backbone.model) if each is not load]
        moved: list[tuple[Part, Load]] = []
        for part in sorted(load.parts.values(), key=lambda part: _largest(part.demand)):
            other = next((each for each in others if each.with_more(part.demand, part.share) is not None), None)
            if other is None:
                for back, there in moved:
                    there.remove(back.demand.name)
                    load.add(back)
                return False
            load.remove(part.demand.name)
            other.add(Part(part.demand, part.share, "the fullest that has room"))
            moved.append((part, other))
        for part, _ in moved:
            self.why[part.demand.name] = f"so that {load.backbone.name} can stop"
        if self.placing.stop(load):
            why = "its tasks fit on the others" if moved else "no task is bound to it"
            self.stops[load.backbone.name] = Change(load.backbone, why)
        return True


def _largest(demand: Demand) -> tuple[float, int, str]:
    return -demand.size, -demand.memory, demand.name


def _smallest(demand: Demand) -> tuple[float, int, str]:
    return demand.size, demand.memory, demand.name


def _emptiest(load: Load) -> tuple[float, int, tuple[int, ...]]:
    """Of equal ones that with the last name."""
    return load.used, len(load.parts), tuple(-ord(letter) for letter in load.backbone.name)
