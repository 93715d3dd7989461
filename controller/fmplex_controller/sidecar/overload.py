"""Whether more is asked of a backbone than it can do, and which of its tasks should leave it then. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from fmplex_controller.planner.loads import CAP, Fleet, Load
from fmplex_controller.planner.max_share import max_share
from fmplex_controller.planner.situation import Move, Plan, Situation

HIGH = 0.95  # of its capacity: a backbone of which more is asked is overloaded
TIGHT = 0.9  # of its capacity that may be used where CAP does not make room for what is asked
BUSY = 0.8  # of the time that an overloaded backbone runs at least
LATE = 0.05  # of a task's requests that finish after its SLO
LEAST = 0.002  # of a backbone's capacity: less is no gain
SURGE = 1.1  # of its capacity: with more asked than that a queue grows too fast to wait for certainty


@dataclass(frozen=True, slots=True)
class Signal:
    """What was measured on a backbone of late."""

    busy: float  # the part of the time that it ran
    late: float = 0.0  # the part of the requests after their SLO, of the task that has the most of them
    late_task: str = ""


@dataclass(frozen=True, slots=True)
class Overload:
    """Of one backbone."""

    why: str
    is_surge: bool


def judged(load: Load, signal: Signal | None) -> Overload | None:
    """Whether a backbone is overloaded now, by what is asked of it and what was measured; None where it is not."""
    if signal is None or signal.busy < BUSY:
        return None
    asked = load.asked
    is_late = signal.late >= LATE and load.used > CAP
    if asked <= HIGH and not is_late:
        return None
    late = f", and {signal.late:.0%} of the requests of {signal.late_task} are late" if is_late else ""
    return Overload(f"{asked:.2f} of its capacity is asked for{late}", asked > SURGE)


def relief(situation: Situation, names: Collection[str], pinned: Collection[str]) -> Plan:
    """Tasks move off these backbones to others, which are filled further where that is not enough.

    In the end without regard to SLOs: what is beyond its capacity meets none, and the queue on it grows.
    """
    relaxed = replace(situation, tasks=tuple(replace(task, slo=None) for task in situation.tasks))
    best, least = Plan((), ()), math.inf
    for seen, cap in ((situation, CAP), (situation, TIGHT), (relaxed, TIGHT)):
        plan = max_share(seen, split=False, start=False, stop=False, only=names, pinned=pinned, cap=cap)
        after = asked_after(plan, situation)
        excess = sum(max(0.0, after[name] - HIGH) for name in names)
        if excess < least - LEAST:
            best, least = plan, excess
        if excess == 0:
            break
    return best


def asked_after(plan: Plan, situation: Situation) -> dict[str, float]:
    """By backbone, the part of its capacity that is asked of it once a plan is carried out."""
    return {name: load.asked for name, load in Fleet(plan.applied_to(situation)).loads.items()}


def is_off(move: Move, names: Collection[str]) -> bool:
    """Whether a task leaves one of these, and goes to none of them.

    To one of these it might only go because another task leaves it, which may be put off.
    """
    return move.before[0] in names and len(move.after) == 1 and move.after[0] not in names
