"""A plan, from what a fleet was and what it has become."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fmplex_controller.planner.loads import NEAR, Fleet, Load
from fmplex_controller.planner.situation import Change, Move, Plan, Situation

Places = Mapping[str, tuple[str, ...]]  # by task, the backbones it is on


def places(fleet: Fleet) -> Places:
    """Of all tasks that are bound."""
    found: dict[str, tuple[str, ...]] = {}
    for name, load in sorted(fleet.loads.items()):
        for task in load.parts:
            found[task] = (*found.get(task, ()), name)
    return found


def answer(
    situation: Situation,
    fleet: Fleet,
    before: Places,
    starts: Mapping[str, Change],
    stops: Mapping[str, Change],
    unplaced: Mapping[str, str],
    why: Mapping[str, str],
) -> Plan:
    """The plan that turns a situation into a fleet.

    Args:
        why: by task, why it has to move; where it goes the fleet's bindings say.
    """
    return Plan(
        bindings=fleet.bindings(),
        backbones=tuple(load.backbone for _, load in sorted(fleet.loads.items())),
        starts=tuple(starts[name] for name in sorted(starts)),
        stops=tuple(stops[name] for name in sorted(stops)),
        moves=tuple(_moves(situation, fleet, before, why)),
        unplaced=dict(sorted(unplaced.items())),
        remarks=tuple(_remarks(situation, fleet)),
        used={name: load.used for name, load in sorted(fleet.loads.items())},
    )


def _moves(situation: Situation, fleet: Fleet, before: Places, why: Mapping[str, str]) -> list[Move]:
    had = {(each.task, each.backbone): each.share for each in situation.bindings}
    moves = []
    for task, now in sorted(places(fleet).items()):
        own = [fleet.loads[name].parts[task] for name in now]
        former = [had.get((task, name), 0.0) for name in now]
        is_same = all(abs(part.share - share) <= NEAR for part, share in zip(own, former, strict=True))
        if before.get(task, ()) != now or not is_same:
            reasons = [why.get(task, ""), *(part.reason for part in own)]
            moves.append(Move(task, before.get(task, ()), now, "; ".join(dict.fromkeys(filter(None, reasons)))))
    gone = (task for task in sorted(before) if not any(task in load.parts for load in fleet.loads.values()))
    return moves + [Move(task, before[task], (), why.get(task, "")) for task in gone]


def _remarks(situation: Situation, fleet: Fleet) -> list[str]:
    found = [
        f"{task.name}: its SLO of {task.slo * 1e3:g} ms is less than twice what one row takes, and is not planned for"
        for task in sorted(situation.tasks, key=lambda task: task.name)
        if task.slo is not None and fleet.demands[task.name].is_slo_out_of_reach
    ]
    for name, load in sorted(fleet.loads.items()):
        if not load.is_sound:
            found.append(f"{name} is beyond its limits, {_used(load)}, and nothing else has room for its tasks")
    for name, site in sorted(fleet.sites.items()):
        if not site.is_sound:
            lacks = "memory" if site.free < 0 else "time"
            found.append(f"the server {name} has not the {lacks} for its backbones, and nothing else has room")
    return found


def _used(load: Load) -> str:
    if math.isfinite(load.used):
        return f"at {load.used:.2f} of its capacity, of which {load.cap:g} may be used"
    return "with no batch size at which all its tasks' SLOs can be met"
