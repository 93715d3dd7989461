"""Reads the repository: each directory when it has changed, and everything every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.repository.directory import UNLOADED, fingerprint
from fmplex_backend.repository.inspection import Inspected, inspect
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_controller.sidecar.error_file import error_in
from fmplex_controller.sidecar.reconcile import BAD_S
from fmplex_controller.sidecar.seen import Directory, Since

MODEL = Inspected("model")  # what is not known to be anything else


class Observer:
    """A repository's directories, with the time for which each has been as it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._reader = RepositoryReader(root)
        self._changed: set[str] | None = None  # None: all
        self._lock = threading.Lock()
        self._since = Since()
        self._known: dict[str, Directory] = {}

    def changed(self, names: set[str] | None) -> None:
        """Something in these directories, or in any, has changed. Any thread."""
        with self._lock:
            self._changed = None if names is None or self._changed is None else self._changed | names

    def observe(self, now: float) -> Mapping[str, Directory]:
        """Every directory by name; raises TaskProblem or OSError where the repository cannot be read."""
        with self._lock:
            changed, self._changed = self._changed, set()
        try:
            names = self._reader.names()
        except (TaskProblem, OSError):
            self.changed(changed)  # it is still to be looked at
            raise
        found: dict[str, Directory] = {}
        for name in names:
            known = self._known.get(name)
            if known is None or changed is None or name in changed or known.still_s < BAD_S:
                found[name] = self._look(name, known, now)
            else:
                still = self._since.seconds(name, known.fingerprint, now)
                found[name] = Directory(name, known.fingerprint, still, known.inspected, known.unloaded, known.error)
        self._known = found
        self._since.keep(found)
        return found

    def _look(self, name: str, known: Directory | None, now: float) -> Directory:
        path, is_unloaded = self.root / name, known is not None and known.unloaded
        try:
            mark = fingerprint(path)
            is_known = known is not None and known.fingerprint == mark
            inspected = known.inspected if known is not None and is_known else inspect(self.root, name)
            is_unloaded = (path / UNLOADED).exists()
        except PermissionError as error:  # which does not pass by itself
            mark, inspected = str(error), replace(known.inspected if known else MODEL, problem=_closed(path, error))
        except OSError as error:  # going away, or its file system is: it counts as changing
            mark, inspected = f"{error} {now}", known.inspected if known else MODEL
        still = self._since.seconds(name, mark, now)
        return Directory(name, mark, still, inspected, is_unloaded, error_in(path))


def _closed(path: Path, error: OSError) -> str:
    problem, remedy = f"it cannot be read: {error.strerror}", "Let the controller's user and the server's read it"
    return str(TaskRefused(error.filename or path, "(directory)", problem, remedy))
