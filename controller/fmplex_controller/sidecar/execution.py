"""Carries actions out, and tells of each what came of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from fmplex.client.status import by_name
from fmplex_backend.errors import (
    ControlClosed,
    DeadlineExceeded,
    FmplexError,
    RepositoryLocked,
    ServerProblem,
    TaskRefused,
    Unreachable,
)
from fmplex_backend.repository.completion import Completion
from fmplex_backend.status import BackboneStatus, TaskStatus
from fmplex_controller.records.events import DONE
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar import planning
from fmplex_controller.sidecar.actions import Action, Complete, Lift, Load, Quarantine, Unload
from fmplex_controller.sidecar.backbone_processes import end_process
from fmplex_controller.sidecar.demand import Demands
from fmplex_controller.sidecar.error_file import remove_error, write_error
from fmplex_controller.sidecar.seen import Attempt
from fmplex_controller.sidecar.triton import Triton

log = logging.getLogger("fmplex.controller")
Attempts = dict[str, Attempt]


class Execution:
    """Changes the files of a repository and the models of its server."""

    def __init__(self, root: Path, triton: Triton, journal: Journal, demands: Demands | None = None) -> None:
        self.root, self.triton, self.journal = root, triton, journal
        self._demands = demands or Demands()
        self._said: dict[str, str] = {}  # by directory, the last problem that may pass; by "" that of the server

    def report(self, action: Quarantine | Lift) -> bool:
        """Write or remove an ERROR.txt; whether that is done: the repository may be read-only."""
        kind, why, outcome = ("mended", "", DONE) if isinstance(action, Lift) else ("quarantined", action.text, DONE)
        try:
            if isinstance(action, Lift):
                log.info("%s is mended", action.name)
                remove_error(self.root / action.name)
            else:
                log.error("%s is quarantined: %s", action.name, action.text)
                write_error(self.root / action.name, action.text)
        except OSError as error:
            log.warning("%s: no ERROR.txt can be written or removed: %s", self.root / action.name, error)
            outcome = f"no ERROR.txt can be written or removed: {error}"
        self.journal.tell(kind, action.name, why, outcome)
        return outcome == DONE

    def carry_out(self, actions: Sequence[Action]) -> Attempts:
        """One after the other; the attempts that are to be remembered.

        Where the server or a backbone's process does not answer, the rest is left: the next round finds it again. A
        directory that cannot be written to, or of which something raises that nobody expected, holds up no other; nor
        does a lock, but for what would wait for it, too.
        """
        found: Attempts = {}
        told: dict[str, BackboneStatus] = {}
        is_locked = False
        for action in actions:
            try:
                if isinstance(action, Load):
                    found[action.name] = self._load(action, told)
                elif isinstance(action, Complete):
                    if not is_locked and (error := self._complete(action)):
                        found[action.name] = Attempt(action.fingerprint, action.depends, error, action.still_s)
                elif isinstance(action, Unload):
                    self._unload(action)
            except ServerProblem as away:
                self._postpone(action, "", str(away))
                break
            except RepositoryLocked as locked:
                is_locked = True
                self._postpone(action, action.name, str(locked))
            except OSError as failure:  # without the names in it: that of what is written aside is another each time
                problem = f"{self.root / action.name}: {failure.strerror or failure}. Let the controller write there"
                self._postpone(action, action.name, problem)
            except Exception as error:
                problem = f"{self.root / action.name}: {type(error).__name__}: {error}"
                self._postpone(action, action.name, problem, error)
            else:
                self._said.pop(action.name, None)
        return found

    def forget_others(self, directories: Collection[str]) -> None:
        """Of directories that are no more."""
        for name in [name for name in list(self._said) if name and name not in directories]:
            self._said.pop(name, None)

    def _unload(self, action: Unload) -> None:
        log.info("%s is unloaded: %s", action.name, action.why)
        if action.pid:
            end_process(action.pid, action.name)
        self.triton.unload(action.name)
        self.journal.tell("unloaded", action.name, action.why)

    def _postpone(self, action: Action, of: str, problem: str, error: Exception | None = None) -> None:
        """Say why it is left, once for each directory or for the server (`of`); with the traceback of an `error`."""
        if self._said.get(of) != problem:
            self._said[of] = problem
            log.warning("%s", problem, exc_info=error)
            self.journal.tell("postponed", action.name, f"to {type(action).__name__.lower()} it", problem)

    def _complete(self, action: Complete) -> str:
        try:
            written = Completion(self.root, self._preferred).complete(action.name)
        except (ServerProblem, RepositoryLocked):
            raise
        except FmplexError as error:
            self.journal.tell("refused", action.name, "its entry is not complete", str(error))
            return str(error)
        if written:
            log.info("%s has been given %s", action.name, written)
            self.journal.tell("completed", action.name, f"it lacked {written}")
        return ""

    def _preferred(self, task: str, fitting: Sequence[str]) -> str | None:
        """Of several backbones of its model the one that the planner binds a task to."""
        told = []
        for name in fitting:
            try:
                told.append(self.triton.status(name))
            except ServerProblem:  # it is not loaded, or does not answer
                continue
        return planning.place(planning.read(self.root, told), self._demands, task)

    def _load(self, action: Load, told: dict[str, BackboneStatus]) -> Attempt:
        error = self._refusal(action, told) if action.backbone else ""
        if not error:
            try:
                self.triton.load(action.name)
            except (Unreachable, DeadlineExceeded, ControlClosed):  # nothing that the model could be blamed for
                raise
            except ServerProblem as problem:
                error = self._triton_refused(action.name, problem)
        if error:
            self.journal.tell("refused", action.name, action.why, error)
        elif not action.confirms:
            log.info("%s is %s", action.name, "loaded as it is now" if action.again else "loaded")
            self.journal.tell("reloaded" if action.again else "loaded", action.name, action.why)
        return Attempt(action.fingerprint, action.depends, error, action.still_s, action.again)

    def _refusal(self, action: Load, told: dict[str, BackboneStatus]) -> str:
        """Why a task's backbone refuses it, "" where it does not; raises ServerProblem where it does not say."""
        if action.confirms:
            if action.backbone not in told:
                told[action.backbone] = self.triton.status(action.backbone)
            task = by_name(told[action.backbone].tasks).get(action.name)
            if task is not None and task.healthy:
                return ""
        task = by_name(self.triton.status(action.backbone, action.name).tasks).get(action.name)
        return self._said_by(action, task)

    def _said_by(self, action: Load, task: TaskStatus | None) -> str:
        if task is None or task.state == "leaving":
            problem = f"the backbone {action.backbone!r} does not find it in its model repository"
            remedy = "Let the server and its controller run on the same repository"
            return str(TaskRefused(self.root / action.name, "(directory)", problem, remedy))
        return "" if task.healthy else task.error

    def _triton_refused(self, name: str, error: ServerProblem) -> str:
        problem = f"Triton does not load it: {str(error).rstrip('.')}"
        return str(TaskRefused(self.root / name, "(directory)", problem, "The server's log says more"))
