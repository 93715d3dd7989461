"""The loop: observe the repository and the server, compare, carry out; and hear how the backbones' processes are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from fmplex_backend.errors import ServerProblem, TaskProblem
from fmplex_backend.repository.following import Following
from fmplex_backend.status import BackboneStatus
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.actions import Action, Lift, Quarantine
from fmplex_controller.sidecar.adaptation import Adaptation, ElasticOptions
from fmplex_controller.sidecar.backbone_processes import Processes
from fmplex_controller.sidecar.board import Board
from fmplex_controller.sidecar.demand import Demands
from fmplex_controller.sidecar.execution import Attempts, Execution
from fmplex_controller.sidecar.health import Health, Turn
from fmplex_controller.sidecar.observer import Observer
from fmplex_controller.sidecar.probes import PERIOD_S, Probes
from fmplex_controller.sidecar.reconcile import BAD_S, STILL_S, reconcile
from fmplex_controller.sidecar.seen import Directory, Miss, Model, Seen, Since, Tags, Unhealthy
from fmplex_controller.sidecar.triton import SILENT, Triton

log = logging.getLogger("fmplex.controller")

POLL_S = 1.0  # between rounds in which nothing is about to happen
SOON_S = 0.2  # while a directory is not still yet
ELASTIC_S = 0.2  # between probes, where overload is to be seen soon
GROUPS = 16  # backbones that are worked on side by side


class Controller:
    """Of one repository and its server. A backbone and its tasks are worked on in order, several backbones at once.

    Args:
        elastic: what it may do about overload; None: nothing.
    """

    def __init__(
        self,
        root: Path,
        triton: Triton,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        elastic: ElasticOptions | None = None,
    ) -> None:
        self.root, self.triton, self.clock = root.resolve(), triton, clock
        self.journal = journal or Journal()
        self.observer = Observer(self.root)
        self.demands = Demands()
        self.execution = Execution(self.root, triton, self.journal, self.demands)
        self.adaptation = Adaptation(self.root, triton, self.journal, elastic, clock) if elastic else None
        self.health, self.processes = Health(), Processes()
        self.board = Board()
        period_s = PERIOD_S if elastic is None else ELASTIC_S
        self.probes = Probes(triton, self._told, clock, period_s, self.processes.has_ended)
        self._attempts: Attempts = {}
        self._ready_since, self._gone_since = Since(), Since()
        self._kept_unloaded: set[str] | None = None  # directories with the file UNLOADED; None: not looked at yet
        self._unwritten: dict[str, str] = {}  # texts of ERROR.txt that could not be written, by directory
        self._working: dict[str, Future[Attempts]] = {}  # by group
        self._told_tags: dict[str, tuple[float, Mapping[int, str]]] = {}  # by backbone, and when it was asked
        self._lock = threading.Lock()  # of health, processes and these
        self._wake = threading.Event()
        self._said = ""

    def run(self, stop: threading.Event) -> None:
        """Until stopped; what one of its threads raises is raised here: half a controller is none."""
        following, raised = Following(self.root, self._changed), list[BaseException]()
        mains = {"following": following.follow_forever, "probes": partial(self.probes.run, stop)}
        if self.adaptation is not None:
            mains["adaptation"] = partial(self.adaptation.run, stop)

        def guarded(main: Callable[[], None]) -> None:
            try:
                main()
            except BaseException as error:
                raised.append(error)
                stop.set()
                self.wake()

        threads = [
            threading.Thread(target=guarded, args=(main,), name=f"fmplex-{name}") for name, main in mains.items()
        ]
        for thread in threads:
            thread.start()
        pool = ThreadPoolExecutor(GROUPS, "fmplex-work")
        try:
            while not stop.is_set():
                self._wake.wait(self.round(pool))
                self._wake.clear()
        finally:
            stop.set()
            following.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in threads:
                thread.join()
        if raised:
            raise raised[0]

    def wake(self) -> None:
        """Begin the next round now. Any thread."""
        self._wake.set()

    def round(self, pool: ThreadPoolExecutor) -> float:
        """Find the differences and set to work on them; seconds until the next round."""
        self._collect_attempts()
        now = self.clock()
        try:
            directories = self.observer.observe(now)
            loaded = self.triton.loaded()
        except (TaskProblem, OSError, ServerProblem) as error:
            self._say(str(error))
            return POLL_S
        self._say("")
        seen = self._seen(directories, loaded, now)
        self.board.round(seen)
        if self.adaptation is not None:
            self.adaptation.errors = {name: each.error for name, each in directories.items() if each.error}
        self._tell_kept_unloaded({name for name, each in directories.items() if each.unloaded})
        self._dispatch(reconcile(seen, str(self.root)), seen, pool)
        waits = any(each.still_s < (BAD_S if each.inspected.problem else STILL_S) for each in directories.values())
        return SOON_S if waits or seen.unhealthy else POLL_S

    # -- what a round goes by

    def _seen(self, directories: Mapping[str, Directory], loaded: set[str], now: float) -> Seen:
        directories = {
            name: replace(each, error=self._unwritten[name]) if name in self._unwritten else each
            for name, each in directories.items()
        }
        models = {
            name: Model(name in loaded, self._ready_since.seconds(name, name in loaded, now))
            for name in loaded | directories.keys()
        }
        named = {each.inspected.backbone for each in directories.values()} | loaded
        gone = {name: self._gone_since.seconds(name, True, now) for name in named - directories.keys()}
        self._ready_since.keep(models)
        self._gone_since.keep(gone)
        self._attempts = {name: attempt for name, attempt in self._attempts.items() if name in directories}
        self._unwritten = {name: text for name, text in self._unwritten.items() if name in directories}
        self.execution.forget_others(directories)
        backbones = {name for name, each in directories.items() if each.inspected.kind == "backbone"}
        self.probes.targets = frozenset(backbones & loaded)
        unhealthy = self._unhealthy(backbones, directories, loaded, now)
        return Seen(directories, models, self._attempts, unhealthy, gone, self._tags(backbones & loaded, now))

    def _unhealthy(
        self, backbones: set[str], directories: Mapping[str, Directory], loaded: set[str], now: float
    ) -> dict[str, Unhealthy]:
        with self._lock:
            self.health.forget_others(backbones)
            found = {
                name: self.health.judge(name, directories[name].fingerprint, name in loaded, now) for name in backbones
            }
        return {name: unhealthy for name, unhealthy in found.items() if unhealthy is not None}

    def _tags(self, backbones: set[str], now: float) -> dict[str, Tags]:
        """What these, which are loaded, have told since they are."""
        with self._lock:
            self._told_tags = {name: told for name, told in self._told_tags.items() if name in backbones}
            return {name: Tags(by_tag, now - sent) for name, (sent, by_tag) in self._told_tags.items()}

    # -- work

    def _dispatch(self, actions: Sequence[Action], seen: Seen, pool: ThreadPoolExecutor) -> None:
        groups: dict[str, list[Action]] = {}
        for action in actions:
            if isinstance(action, Quarantine | Lift):
                self._report(action)
                continue
            directory = seen.directories.get(action.name)
            group = action.name if directory is None else directory.inspected.backbone or action.name
            groups.setdefault(group, []).append(action)
        for group, own in groups.items():
            if group not in self._working:
                self._working[group] = pool.submit(self._work, own)

    def _work(self, actions: Sequence[Action]) -> Attempts:
        try:
            return self.execution.carry_out(actions)
        except Exception:
            log.exception("carrying out %s", actions)
            return {}
        finally:
            self._wake.set()

    def _collect_attempts(self) -> None:
        """Remember what came of the work that is done."""
        for group, work in list(self._working.items()):
            if work.done():
                attempts = work.result()
                self._attempts |= attempts
                del self._working[group]
                for name, attempt in attempts.items():
                    if attempt.error:
                        self._refused(name, attempt.error)

    def _refused(self, name: str, why: str) -> None:
        with self._lock:
            is_given_up = self.health.refused(name, why, self.clock())
            reason = self.health.reason(name)
        if is_given_up:
            log.error("the backbone %s: %s", name, reason)
            self.journal.tell("given-up", name, reason)

    def _report(self, action: Quarantine | Lift) -> None:
        written = self.execution.report(action)
        self._unwritten.pop(action.name, None)
        if not written:
            self._unwritten[action.name] = action.text if isinstance(action, Quarantine) else ""
        self.observer.changed({action.name})

    # -- what others tell

    def _changed(self, names: set[str] | None) -> None:
        self.observer.changed(names)
        if self.adaptation is not None:
            self.adaptation.changed(names)
        self._wake.set()

    def _told(self, backbone: str, told: BackboneStatus | Miss, sent: float) -> None:
        turn: Turn
        with self._lock:
            if isinstance(told, Miss):
                if self.processes.is_dead(backbone):
                    told = replace(told, enough=1)
                elif told.enough == SILENT:  # for as many seconds, however often it is probed
                    told = replace(told, enough=round(SILENT * PERIOD_S / self.probes.period_s))
                turn = "dead" if self.health.missed(backbone, told, sent, self.clock()) else ""
                if turn == "dead":  # which tasks have its tags another process decides
                    self._told_tags.pop(backbone, None)
            else:
                self.processes.named(backbone, told.pid)
                if backbone not in self._told_tags or self._told_tags[backbone][0] <= sent:  # probes overlap
                    self._told_tags[backbone] = sent, told.tag_holders
                self.demands.observe(told, sent)
                turn = self.health.answered(backbone, told, self.clock())
            reason, is_given_up = self.health.reason(backbone), self.health.is_given_up(backbone)
        if isinstance(told, BackboneStatus):
            self.board.told(told, self.clock())
            self.journal.sample(told)
            if self.adaptation is not None:
                self.adaptation.told(told, sent)
        if turn == "dead":
            log.error("the backbone %s: %s", backbone, reason)
            self.journal.tell("given-up" if is_given_up else "dead", backbone, reason)
            self._wake.set()
        elif turn == "back":
            self.journal.tell("back", backbone, "another process answers")

    def _tell_kept_unloaded(self, names: set[str]) -> None:
        if self._kept_unloaded is not None:
            for name in sorted(names - self._kept_unloaded):
                self.journal.tell("kept-unloaded", name, "its directory holds UNLOADED")
            for name in sorted(self._kept_unloaded - names):
                self.journal.tell("released", name, "its directory holds UNLOADED no more")
        self._kept_unloaded = names

    def _say(self, problem: str) -> None:
        """The repository or the server is away, or, with no problem, both are there."""
        if problem and problem != self._said:
            log.warning("%s", problem)
            self.journal.tell("away", "", problem, "nothing is done meanwhile")
        elif self._said and not problem:
            self.journal.tell("reachable", "", self._said, "both server and repository are there again")
        self._said = self.board.problem = problem
