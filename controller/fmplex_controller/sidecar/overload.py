"""Whether more is asked of a backbone than it can do, and which of its tasks should leave it then. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fmplex_controller.planner.loads import CAP, Fleet, Load
from fmplex_controller.planner.max_share import max_share
from fmplex_controller.planner.situation import Move, Plan, Situation

HIGH = 0.95  # of its capacity: a backbone of which more is asked is overloaded
TIGHT = 0.9  # of its capacity: in the place of CAP (0.8), where that leaves too little room
BUSY = 0.8  # of the time that an overloaded backbone runs at least
LATE = 0.05  # of a task's requests that finish after its SLO
LEAST = 0.002  # of a backbone's capacity: to move a smaller task, or to remove a smaller excess, gains nothing
SURGE = 1.1  # of its capacity: with more asked than that a queue grows too fast to wait for certainty
LONG = 0.4  # of the tightest SLO: a queue that takes so long will make requests late
CATCH_UP_S = 2.0  # in which a backbone that has been relieved works off what waits on it, beside what comes
MOST_BEHIND = 0.3  # of its capacity: the most that is left free for working off its queue
GAIN = 0.05  # of a backbone's capacity: by so much a plan that moves more must be the better one


@dataclass(frozen=True, slots=True)
class Signal:
    """What was measured on a backbone of late."""

    busy: float  # the part of the time that it ran
    late: float = 0.0  # the part of the requests after their SLO, of the task that has the most of them
    late_task: str = ""
    wait_s: float = 0.0  # seconds that it needs for all that waits and runs now
    requests: float = math.inf  # that come per second: of few, chance alone makes many now and then

    def is_queue_long(self, slo: float) -> bool:
        """Whether requests will be later than an SLO, in seconds, if it goes on so; without one, if they wait long."""
        return self.wait_s > (CATCH_UP_S if math.isinf(slo) else LONG * slo)

    @property
    def behind(self) -> float:
        """The part of the backbone's capacity that it needs for what waits."""
        return min(MOST_BEHIND, self.wait_s / CATCH_UP_S)


@dataclass(frozen=True, slots=True)
class Overload:
    """Of one backbone."""

    why: str
    is_surge: bool  # far beyond its capacity
    is_queued: bool = False  # and so for long enough that a queue has grown


def judged(load: Load, signal: Signal | None) -> Overload | None:
    """Whether a backbone is overloaded now, by what is asked of it and what was measured; None where it is not."""
    if signal is None or signal.busy < BUSY:
        return None
    asked = load.asked
    is_late = signal.late >= LATE and load.used > CAP
    if asked <= HIGH and not is_late:
        return None
    late = f", and {signal.late:.0%} of the requests of {signal.late_task} are late" if is_late else ""
    is_surge = asked > SURGE
    is_queued = is_surge and signal.is_queue_long(load.slo)
    queue = f", and what waits takes {signal.wait_s * 1e3:.0f} ms" if is_queued else ""
    return Overload(f"{asked:.2f} of its capacity is asked for{queue}{late}", is_surge, is_queued)


def relief(situation: Situation, behind: Mapping[str, float], pinned: Collection[str]) -> Plan:
    """Tasks move off these backbones to others, which are filled further where that is not enough.

    In the end without regard to SLOs: what is beyond its capacity meets none, and the queue on it grows.

    Args:
        behind: by overloaded backbone, the part of its capacity that it needs for what waits, see `Signal`.
    """
    relaxed = replace(situation, tasks=tuple(replace(task, slo=None) for task in situation.tasks))
    best, least = Plan((), ()), math.inf
    for seen, cap in ((situation, CAP), (situation, TIGHT), (relaxed, CAP), (relaxed, TIGHT)):
        caps = {name: cap - part for name, part in behind.items()}
        plan = max_share(seen, split=False, start=False, stop=False, only=behind, pinned=pinned, cap=cap, caps=caps)
        excess = _excess(plan, situation, behind)
        if excess < least - GAIN:
            best, least = plan, excess
        if excess <= LEAST:
            break
    return best


def _excess(plan: Plan, situation: Situation, behind: Mapping[str, float]) -> float:
    """What a plan costs: capacity asked for beyond CAP once it is carried out, twice on backbones that take tasks.

    Some of what was measured in a moment is chance: tasks that stay can still be moved, those that have moved are held.
    """
    after = asked_after(plan, situation)
    others = {name for move in plan.moves for name in move.after} - behind.keys()
    own = sum(max(0.0, after[name] + part - CAP) for name, part in behind.items())
    return own + 2 * sum(max(0.0, after[name] - CAP) for name in others)


def asked_after(plan: Plan, situation: Situation) -> dict[str, float]:
    """By backbone, the part of its capacity that is asked of it once a plan is carried out."""
    return {name: load.asked for name, load in Fleet(plan.applied_to(situation)).loads.items()}


def is_off(move: Move, names: Collection[str]) -> bool:
    """Whether a task leaves one of these, and goes to none of them.

    To one of these it might only go because another task leaves it, which may be put off.
    """
    return move.before[0] in names and len(move.after) == 1 and move.after[0] not in names
