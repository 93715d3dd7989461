"""When tasks change their backbones by themselves, and when backbones start and stop. Pure: time is passed in.

A backbone is overloaded while it is busy and more is asked of it than HIGH of its capacity, or while it is beyond the
planner's cap and requests are late. Once that has lasted, longer where few requests come, not long where it is far
beyond, and not at all where a queue has grown of that, the planner moves tasks off it to backbones that are there;
where these have no room and it goes on, one more is started, to which tasks go like to any other. A backbone that was
started so is given up once its tasks have had room elsewhere, at no more than BACK of the others' capacity, for long.

What keeps this from flapping: a task that was moved stays for `hold_s`, or, where its new backbone is overloaded, for
AGAIN_S, and does not go back within `hold_s`; so many moves a minute are made and no more; between what starts a move
and what takes one back lie HIGH and BACK, and `idle_s`. What is remembered for that is lost with the process, and a new
one begins with nothing held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from fmplex_controller.planner.loads import Fleet
from fmplex_controller.planner.max_share import emptied, max_share
from fmplex_controller.planner.situation import Backbone, Move, Plan, Situation
from fmplex_controller.records.events import DONE
from fmplex_controller.sidecar.overload import (
    HIGH,
    LEAST,
    Overload,
    Signal,
    asked_after,
    is_off,
    judged,
    relief,
)
from fmplex_controller.sidecar.seen import Since

BACK = 0.6  # of the others' capacity up to which they take the tasks of one that is to stop
OVER_S, SURGE_S = 2.0, 0.4  # an overload has lasted so long before tasks move; a surge, two readings
# And for so many requests: with CAP asked for, three standard deviations of a Poisson process do not reach HIGH in
# that time, nor SURGE.
OVER_REQUESTS, SURGE_REQUESTS = 256, 64
AGAIN_S = 10.0  # of an overloaded backbone, after which a task that was moved there may move on
START_OVER_S = 5.0  # and before a backbone is started, which takes memory and time from those that are there
DRAIN_S = 10.0  # a backbone runs on after its last task has left: it answers what it holds
LOAD_S = 900.0  # a backbone that has not started after this long has failed
RETRY_S = 600.0  # none is started for so long after one that failed
CLEAR_S = 10.0  # without overload, after which another one is another event
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What elasticity may do."""

    moves_per_minute: int = 30
    hold_s: float = 60.0  # that a task stays where it was moved to
    idle_s: float = 300.0  # that a started backbone's tasks have room elsewhere before it is stopped
    start: bool = True  # whether backbones may be started


@dataclass(frozen=True, slots=True)
class Observed:
    """What a decision goes by."""

    situation: Situation  # backbones that answer, their tasks, and what is asked of these
    signals: Mapping[str, Signal]  # by backbone
    started: frozenset[str] = frozenset()  # backbones that elasticity has started, also those that do not answer yet
    failed: Mapping[str, str] = field(default_factory=dict)  # of these, why they cannot be loaded
    pinned: frozenset[str] = frozenset()  # tasks that have to stay where they are


@dataclass(frozen=True, slots=True)
class Rebind:
    """Bind a task to another backbone."""

    task: str
    former: str
    backbone: str
    why: str


@dataclass(frozen=True, slots=True)
class Start:
    """Write a backbone of this model."""

    backbone: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Remove a backbone that elasticity has started."""

    backbone: str
    why: str


@dataclass(frozen=True, slots=True)
class Overloaded:
    """Tell that a backbone is overloaded, once each time that it comes to that, and what is done about it."""

    backbone: str
    why: str
    outcome: str  # of the event: DONE where something is done about it


Action = Rebind | Start | Stop | Overloaded


class Elastic:
    """Decides, again and again, what is to be done about what was observed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._over, self._surge, self._calm, self._waits = Since(), Since(), Since(), Since()
        self._moved_at: dict[str, float] = {}  # by task
        self._was_on: dict[tuple[str, str], float] = {}  # by task and backbone: when it was moved off it
        self._recent: deque[float] = deque()  # times of moves within the last minute
        self._left_at: dict[str, float] = {}  # by backbone: when its last task was moved off it
        self._tried_at: dict[tuple[str, str], float] = {}  # by what was done to which backbone
        self._start_at = float("-inf")  # no backbone is started before this time
        self._told_at: dict[str, float] = {}  # by overloaded backbone: when it was last seen to be so

    def decide(self, observed: Observed, now: float) -> list[Action]:
        """What is to be done, in this order; it counts as done from now on."""
        self._forget(observed, now)
        fleet = Fleet(observed.situation)
        over = self._overloaded(observed, fleet, now)
        lasting = {
            name: each.why
            for name, each in over.items()
            if self._is_lasting(name, each, observed.signals[name].requests, now)
        }
        actions: list[Action] = []
        if lasting:
            actions += self._relieve(observed, fleet, lasting, now)
        actions += self._failed(observed, now)
        actions += self._give_back(observed, fleet, over, now)
        return actions

    # -- what is too much

    def _overloaded(self, observed: Observed, fleet: Fleet, now: float) -> dict[str, Overload]:
        found = {
            name: overload
            for name, load in sorted(fleet.loads.items())
            if (overload := judged(load, observed.signals.get(name))) is not None
        }
        self._over.keep(found)
        self._surge.keep({name: each for name, each in found.items() if each.is_surge})
        for name in [name for name, at in self._told_at.items() if name not in found and now - at > CLEAR_S]:
            del self._told_at[name]
        self._told_at |= {name: now for name in found if name in self._told_at}
        return found

    def _is_lasting(self, name: str, overload: Overload, requests: float, now: float) -> bool:
        over_s = self._over.seconds(name, True, now)
        surge_s = self._surge.seconds(name, True, now) if overload.is_surge else 0.0
        over = over_s >= OVER_S and over_s * requests >= OVER_REQUESTS
        surge = surge_s >= SURGE_S and surge_s * requests >= SURGE_REQUESTS
        return over or surge or overload.is_queued

    def _relieve(self, observed: Observed, fleet: Fleet, lasting: Mapping[str, str], now: float) -> Iterator[Action]:
        pinned = self._pinned(observed, fleet, now) - self._may_move_on(observed, lasting, now)
        behind = {name: observed.signals[name].behind for name in lasting}
        plan = relief(observed.situation, behind, pinned)
        while not (moves := self._moves(plan, lasting)) and (back := self._going_back(plan)):
            pinned |= back  # so this ends: of a pinned task no plan has a move
            plan = relief(observed.situation, behind, pinned)
        moves = self._within_budget(fleet, moves)
        after = asked_after(plan, observed.situation)
        left = [name for name in lasting if after[name] > HIGH]
        starts = self._starts(observed, left, pinned, now) if left else []
        for name, why in lasting.items():
            if name not in self._told_at:
                own = sum(name in each.before for each in moves)
                yield _told(name, why, own, starts, plan)
                self._told_at[name] = now
        for move in moves:
            yield self._rebind(move, now)
        yield from starts

    def _starts(self, observed: Observed, names: Collection[str], pinned: Collection[str], now: float) -> list[Start]:
        """One more backbone for tasks of these, where one would take some."""
        is_lasting = any(self._over.seconds(name, True, now) >= START_OVER_S for name in names)
        serving = {each.name for each in observed.situation.backbones}
        if not (is_lasting and self.settings.start and now >= self._start_at) or observed.started - serving:
            return []
        plan = max_share(observed.situation, split=False, stop=False, only=names, pinned=pinned)
        for change in plan.starts:
            name = change.backbone.name
            if any(name in each.after for each in plan.moves) and self._may("start", name, now):
                return [Start(name, change.backbone.model, change.reason)]
        return []

    # -- what is not needed any more

    def _give_back(self, observed: Observed, fleet: Fleet, over: Collection[str], now: float) -> Iterator[Action]:
        """Empty, then stop, the last backbone that was started whose tasks have had room elsewhere for `idle_s`."""
        serving = {each.name: each for each in observed.situation.backbones}
        short = {serving[name].model for name in over}
        own = sorted(
            (name for name in observed.started & serving.keys() if serving[name].model not in short), reverse=True
        )
        plans = {
            name: emptied(observed.situation, name, pinned=observed.pinned, cap=BACK)
            for name in own
            if _has_others(serving, name)
        }
        calm = {name: plan for name, plan in plans.items() if plan is not None}
        self._calm.keep(calm)
        ready = [name for name in calm if self._calm.seconds(name, True, now) >= self.settings.idle_s]
        for name in ready[:1]:
            moves = list(calm[name].moves)
            if self._held(now) & {each.task for each in moves}:
                return
            if moves:
                for move in self._within_budget(fleet, moves):
                    self._left_at[name] = now
                    yield self._rebind(move, now)
            elif now - self._left_at.get(name, float("-inf")) >= DRAIN_S and self._may("stop", name, now):
                yield Stop(name, f"for {self.settings.idle_s:g} s the others have had room for what is asked of it")

    def _failed(self, observed: Observed, now: float) -> Iterator[Stop]:
        serving = {each.name for each in observed.situation.backbones}
        waiting = dict.fromkeys(observed.started - serving)
        self._waits.keep(waiting)
        for name in sorted(waiting):
            why = observed.failed.get(name, "")
            if not why and self._waits.seconds(name, True, now) >= LOAD_S:
                why = f"it has not answered for {LOAD_S:g} s"
            if why and self._may("stop", name, now):
                self._start_at = now + RETRY_S
                yield Stop(name, f"it does not start, and none is started for {RETRY_S / 60:g} minutes: {why}")

    def _may(self, what: str, backbone: str, now: float) -> bool:
        """Once a minute: that may fail, as where the repository cannot be written to."""
        if now - self._tried_at.get((what, backbone), float("-inf")) < MINUTE_S:
            return False
        self._tried_at[what, backbone] = now
        return True

    # -- what keeps it from flapping

    def _pinned(self, observed: Observed, fleet: Fleet, now: float) -> set[str]:
        """Tasks that were moved a short while ago, and those of which nothing is gained."""
        return (
            self._held(now) | observed.pinned | {name for name, demand in fleet.demands.items() if demand.size < LEAST}
        )

    def _held(self, now: float) -> set[str]:
        return {task for task, at in self._moved_at.items() if now - at < self.settings.hold_s}

    def _may_move_on(self, observed: Observed, lasting: Collection[str], now: float) -> set[str]:
        """Tasks that were moved to what is overloaded now: the estimate by which they were moved was wrong."""
        there = {each.task for each in observed.situation.bindings if each.backbone in lasting} - observed.pinned
        return {task for task in there & self._held(now) if now - self._moved_at[task] >= AGAIN_S}

    def _moves(self, plan: Plan, lasting: Collection[str]) -> list[Move]:
        """Those of a plan that take a task off what is overloaded, to where it was not a short while ago."""
        back = self._going_back(plan)
        return [each for each in plan.moves if is_off(each, lasting) and each.task not in back]

    def _going_back(self, plan: Plan) -> set[str]:
        """Tasks that a plan takes to where they were a short while ago."""
        return {each.task for each in plan.moves if any((each.task, name) in self._was_on for name in each.after)}

    def _within_budget(self, fleet: Fleet, moves: list[Move]) -> list[Move]:
        """The largest first: they help most."""
        largest = sorted(moves, key=lambda each: (-fleet.demands[each.task].size, each.task))
        return largest[: max(0, self.settings.moves_per_minute - len(self._recent))]

    def _rebind(self, move: Move, now: float) -> Rebind:
        self._moved_at[move.task] = self._was_on[move.task, move.before[0]] = now
        self._recent.append(now)
        return Rebind(move.task, move.before[0], move.after[0], move.reason)

    def _forget(self, observed: Observed, now: float) -> None:
        while self._recent and now - self._recent[0] >= MINUTE_S:
            self._recent.popleft()
        longest = max(self.settings.hold_s, MINUTE_S)
        self._was_on = {key: at for key, at in self._was_on.items() if now - at < self.settings.hold_s}
        self._moved_at = {task: at for task, at in self._moved_at.items() if now - at < longest}
        self._tried_at = {key: at for key, at in self._tried_at.items() if now - at < MINUTE_S}
        self._left_at = {name: at for name, at in self._left_at.items() if name in observed.started}


def _has_others(serving: Mapping[str, Backbone], name: str) -> bool:
    return any(each.model == serving[name].model for each in serving.values() if each.name != name)


def _told(backbone: str, why: str, moves: int, starts: Collection[Start], plan: Plan) -> Overloaded:
    said = [f"tasks move: {moves}"] if moves else []
    said += [f"{each.backbone} is started" for each in starts]
    if said:
        return Overloaded(backbone, "; ".join((why, *said)), DONE)
    return Overloaded(backbone, why, "; ".join(("nothing can be done at the moment", *plan.remarks)))
