"""Elasticity at work: what backbones tell goes to the decision (`elastic`), and what it decides is carried out.

Tasks are rebound here, so that it takes milliseconds. Backbones are only written into the repository, or removed from
it: the controller loads and unloads them as it does with whatever anybody puts there.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fmplex.client.status import by_name
from fmplex_backend.errors import FmplexError
from fmplex_backend.status import BackboneStatus
from fmplex_controller.planner.situation import Situation
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar import planning
from fmplex_controller.sidecar.backbones import Backbones
from fmplex_controller.sidecar.demand import Demands
from fmplex_controller.sidecar.elastic import (
    Action,
    Elastic,
    Observed,
    Overloaded,
    Rebind,
    Settings,
    Start,
    Stop,
)
from fmplex_controller.sidecar.overload import BUSY, Signal
from fmplex_controller.sidecar.planning import Known, Limits
from fmplex_controller.sidecar.rebinding import rebind
from fmplex_controller.sidecar.triton import Triton

log = logging.getLogger("fmplex.controller")

FAST_S = 0.5  # time constant of what an overload is told by
LATEST_S = 0.3  # and of what it is told by where a queue has grown already
FULL = 0.5  # of Bmax: the rows of batches that tell how slow a backbone is
MOST_GROWN = 2.0  # times what is asked for by the slower average that it may be by the faster one
FRESH_S = 3.0  # a backbone that has told nothing for so long is left out
READ_S = 30.0  # the repository is read again after so long where no change in it is known
NOTHING = Situation((), (), ())
WAKE_S, PERIOD_S = 1.0, 0.1  # between rounds at most, and at least


@dataclass(frozen=True, slots=True)
class ElasticOptions:
    """What elasticity may do, and what the server has for backbones."""

    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)

    @property
    def arguments(self) -> list[str]:
        """For the command line of the controller's process."""
        return ["--elastic", json.dumps(asdict(self))]

    @staticmethod
    def of(text: str) -> ElasticOptions:
        """As `arguments` have them."""
        document: dict[str, dict[str, Any]] = json.loads(text)
        return ElasticOptions(Settings(**document["settings"]), Limits(**document["limits"]))


@dataclass(frozen=True, slots=True)
class _Told:
    status: BackboneStatus
    at: float
    ran: float = 0.0  # the part of the time since the reading before that it ran
    busy: float = 0.0  # the same, or that of the reading before
    batch: float = 0.0  # rows of a batch of late, on average


class Adaptation:
    """Of one server. `told` and `changed` are for any thread, `run` has one of its own."""

    def __init__(
        self, root: Path, triton: Triton, journal: Journal, options: ElasticOptions, clock: Callable[[], float]
    ) -> None:
        self.root, self.triton, self.journal, self.clock = root, triton, journal, clock
        self.limits = options.limits
        self.elastic = Elastic(options.settings)
        self.demands, self.latest = Demands(memory_s=FAST_S), Demands(memory_s=LATEST_S)
        self.errors: Mapping[str, str] = {}  # by directory, what its ERROR.txt says
        self._told: dict[str, _Told] = {}
        self._lock = threading.Lock()  # of these two
        self._wake = threading.Event()
        self._known: Known | None = None
        self._elastic = frozenset[str]()  # backbones that were started here, as of the last reading
        self._read_at = float("-inf")
        self._stale = True
        self._slowness: dict[str, float] = {}  # by model, as it was when last a backbone of it was always at work

    def told(self, status: BackboneStatus, at: float) -> None:
        """A backbone tells of itself."""
        with self._lock:
            former = self._told.get(status.name)
            if former is not None and at <= former.at:
                return
            self.demands.observe(status, at)
            self.latest.observe(status, at)
            ran = _ran(former, status, at)
            busy = max(ran, former.ran if former else 0.0)
            self._told[status.name] = _Told(status, at, ran, busy, _batch(former, status))
        self._wake.set()

    def changed(self, names: set[str] | None) -> None:
        """Something in these directories has changed; with None perhaps: then nothing is read anew."""
        if names is not None:
            self._stale = True

    def run(self, stop: threading.Event) -> None:
        """Until stopped."""
        while not stop.is_set():
            self._wake.wait(WAKE_S)
            self._wake.clear()
            try:
                self.round()
            except (FmplexError, OSError) as error:  # the repository is away, which the controller tells
                log.debug("%s", error)
            except Exception:  # the next round may find something else
                log.exception("adapting")
            stop.wait(PERIOD_S)

    def round(self) -> None:
        """Decide, and do it."""
        now = self.clock()
        observed = self._observed(now)
        if observed is None:
            return
        for action in self.elastic.decide(observed, now):
            self._carry_out(action)

    # -- what is decided by

    def _observed(self, now: float) -> Observed | None:
        with self._lock:
            told = {name: each for name, each in self._told.items() if now - each.at < FRESH_S}
        if not told:
            return None
        is_calm = not any(each.busy >= BUSY for each in told.values())
        if is_calm and self._known is not None and not self._elastic:
            return Observed(NOTHING, {})  # spares reckoning with hundreds of tasks
        known = self._read(told, now)
        with self._lock:
            for name in filter(lambda each: _is_full(told[each]), known.statuses):
                if (slower := planning.slowness(known, self.demands, name)) is not None:
                    self._slowness[known.model_of[name]] = slower
            signals = {name: self._signal(known, name, told[name].busy) for name in known.statuses}
            seen = planning.situation(known, self.demands, self.limits, self._slowness)
            seen = self._grown(seen, known, signals)
        return Observed(seen, signals, self._elastic, self.errors, known.grouped)

    def _read(self, told: Mapping[str, _Told], now: float) -> Known:
        """The repository as it was when something was last known to change, and what backbones tell now."""
        statuses = {name: each.status for name, each in told.items()}
        known = self._known
        if known is None or self._stale or now - self._read_at > READ_S or statuses.keys() != known.asked:
            self._stale = False
            try:
                elastic = Backbones(self.root).elastic()
                self._known = known = planning.read(self.root, statuses.values(), reuse=False)
            except (FmplexError, OSError):
                self._stale = True  # what has changed is still to be read
                raise
            self._elastic, self._read_at = elastic, now
        return replace(known, statuses={name: statuses[name] for name in known.statuses})

    def _signal(self, known: Known, backbone: str, busy: float) -> Signal:
        own = [name for name, (place, _) in known.specs.items() if place == backbone]
        late, task = max(((self.demands.of(name, backbone).misses, name) for name in own), default=(0.0, ""))
        slower = self._slowness.get(known.model_of[backbone], 1.0)
        requests = sum(self.demands.requests(name, backbone) for name in own)
        return Signal(busy, late, task, planning.wait_s(known, self.demands, backbone, slower), requests)

    def _grown(self, seen: Situation, known: Known, signals: Mapping[str, Signal]) -> Situation:
        """Where a queue has grown long, more is asked for than the average of the last half second says."""
        factors: dict[str, float] = {}
        for backbone, signal in signals.items():
            own = {name: spec.slo for name, (place, spec) in known.specs.items() if place == backbone}
            if signal.is_queue_long(min((slo for slo in own.values() if slo is not None), default=math.inf)):
                slow, fast = (sum(each.of(name, backbone).rows for name in own) for each in (self.demands, self.latest))
                factors |= dict.fromkeys(own, min(MOST_GROWN, max(1.0, fast / slow)) if slow else 1.0)
        return replace(seen, tasks=tuple(replace(t, rate=t.rate * factors.get(t.name, 1.0)) for t in seen.tasks))

    # -- what is done

    def _carry_out(self, action: Action) -> None:
        try:
            if isinstance(action, Overloaded):
                log.warning("%s is overloaded: %s: %s", action.backbone, action.why, action.outcome)
                self.journal.tell("overloaded", action.backbone, action.why, action.outcome)
            elif isinstance(action, Rebind):
                self._rebind(action)
            elif isinstance(action, Start):
                self._start(action)
            elif isinstance(action, Stop):
                self._stop(action)
        except (FmplexError, OSError) as error:  # it is in the journal; what is still wrong is found again
            log.warning("%s: %s", action, error)
        except Exception:  # the others of a decision count as done, and are to be done
            log.exception("%s", action)
        finally:
            self._stale = True

    def _rebind(self, action: Rebind) -> None:
        with self._lock:
            demand, latest = (each.of(action.task, action.former) for each in (self.demands, self.latest))
            known = by_name(self._told[action.former].status.tasks).get(action.task)
        ahead_s = 0.0 if known is None else known.ahead_s
        triton, journal = self.triton, self.journal
        if rebind(self.root, triton, action.task, action.backbone, journal=journal, why=action.why, ahead_s=ahead_s):
            with self._lock:
                self.demands.carry(action.task, demand, action.backbone, self.clock())
                self.latest.carry(action.task, latest, action.backbone, self.clock())
            log.info("%s is on %s now: %s", action.task, action.backbone, action.why)

    def _start(self, action: Start) -> None:
        assert self._known is not None, "a decision goes by it"
        with self.journal.telling("backbone-started", action.backbone, action.why):
            Backbones(self.root).copy(action.backbone, self._known.templates[action.model], elastic=True)
        log.info("%s is started: %s", action.backbone, action.why)

    def _stop(self, action: Stop) -> None:
        with self.journal.telling("backbone-stopped", action.backbone, action.why):
            Backbones(self.root).remove_elastic(action.backbone)
        log.info("%s is removed: %s", action.backbone, action.why)


def _is_full(told: _Told) -> bool:
    """Whether a backbone is always at work, with batches that are not small: others pay more for each row."""
    return told.busy >= BUSY and told.batch >= FULL * told.status.max_batch


def _batch(former: _Told | None, status: BackboneStatus) -> float:
    if former is None or status.batches <= former.status.batches or status.items < former.status.items:
        return 0.0 if former is None else former.batch
    rows = (status.items - former.status.items) / (status.batches - former.status.batches)
    return (former.batch + rows) / 2


def _ran(former: _Told | None, status: BackboneStatus, at: float) -> float:
    """The part of the time since the reading before that it ran, the batch at hand included; 0 with a new process."""
    if former is None or status.busy_s < former.status.busy_s or former.status.pid != status.pid:
        return 0.0
    ran = status.busy_s + status.running_s - former.status.busy_s - former.status.running_s
    return max(0.0, min(1.0, ran / (at - former.at)))
