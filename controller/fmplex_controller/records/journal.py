"""What a controller tells as it works: events to the log and to whoever listens, backbones' counts to the ledger."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fmplex_backend.errors import FmplexError, SetupProblem
from fmplex_backend.status import BackboneStatus
from fmplex_controller.records.events import CONTROLLER, DONE, SERVER, Event, EventLog, SharedEventLog, event_now
from fmplex_controller.records.folder import make_folder
from fmplex_controller.records.ledger import Ledger

LOCK_S = 2.0  # for a controller before this one to end
log = logging.getLogger("fmplex.controller")


class Journal:
    """Without a log and a ledger, as where nothing can be written, it only tells those who listen. Any thread."""

    def __init__(self, events: EventLog | SharedEventLog | None = None, ledger: Ledger | None = None) -> None:
        self._events, self._ledger = events, ledger
        self._lock: FileLock | None = None  # held as long as this process writes
        self._waits: tuple[FileLock, Path] | None = None  # where another controller still records
        self._waiting = threading.Lock()
        self._has_failed = False
        self.folder: Path | None = None  # where all is recorded
        self.listeners: list[Callable[[Event], None]] = []

    @staticmethod
    def of_server(folder: Path, repository: Path, server: str) -> Journal:
        """For the process that runs the server: it writes a log of its own, and no ledger."""
        try:
            make_folder(folder, repository, server)
            return Journal(EventLog(folder, SERVER))
        except (SetupProblem, OSError) as error:
            log.warning("no events are recorded: %s", error)
            return Journal()

    @staticmethod
    def of_command(folder: Path, repository: Path, server: str) -> Journal:
        """For a command that changes something: its events stand beside those of a controller, and no ledger."""
        try:
            return Journal(SharedEventLog(make_folder(folder, repository, server)))
        except SetupProblem as problem:
            log.warning("no events are recorded: %s", problem)
            return Journal()

    @staticmethod
    def opened(folder: Path, repository: Path, server: str) -> Journal:
        """With log and ledger in a directory; without what cannot be had, and a line in the log that says why."""
        journal = Journal()
        try:
            make_folder(folder, repository, server)
            lock = FileLock(folder / "lock", thread_local=False)
            if not journal._begun(lock, folder, LOCK_S):
                log.warning("%s: another controller records there; this one does once that has ended", folder)
                journal._waits = lock, folder
        except (SetupProblem, OSError) as error:
            log.warning("neither events nor usage are recorded: %s", error)
        return journal

    def _begun(self, lock: FileLock, folder: Path, timeout_s: float) -> bool:
        """Record in a directory from now on, unless another process does; raises OSError."""
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            return False
        self._events = EventLog(folder, CONTROLLER)
        self.folder, self._lock = folder, lock
        try:
            self._ledger = Ledger(folder)
        except SetupProblem as problem:
            log.warning("usage is not recorded: %s", problem)
        return True

    def _wait(self) -> None:
        """Begin as soon as the controller before this one has ended."""
        with self._waiting:
            if self._waits is None:
                return
            try:
                if self._begun(*self._waits, 0.0):
                    self._waits = None
            except OSError as error:
                log.warning("neither events nor usage are recorded: %s", error)
                self._waits = None

    def tell(self, kind: str, model: str = "", reason: str = "", outcome: str = DONE) -> None:
        """Something has been done or found out."""
        event = event_now(kind, model, reason, outcome)
        if self._events is not None:
            self._events.add(event)
        for listener in self.listeners:
            listener(event)

    @contextlib.contextmanager
    def telling(self, kind: str, model: str, reason: str) -> Iterator[None]:
        """Tell of what the block does, once it is done or has failed."""
        try:
            yield
        except (FmplexError, OSError) as error:
            self.tell(kind, model, reason, str(error))
            raise
        self.tell(kind, model, reason)

    def sample(self, status: BackboneStatus) -> None:
        """Enter what a backbone has counted."""
        if self._waits is not None:
            self._wait()
        if self._ledger is None:
            return
        try:
            self._ledger.sample(status, time.time())
            self._has_failed = False
        except sqlite3.Error as error:
            if not self._has_failed:
                log.error("usage cannot be recorded at the moment: %s", error)
            self._has_failed = True

    def close(self) -> None:
        """Close the files."""
        if self._events is not None:
            self._events.close()
        if self._ledger is not None:
            self._ledger.close()
        if self._lock is not None:
            self._lock.release()
