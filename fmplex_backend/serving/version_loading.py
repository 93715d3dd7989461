"""The versions that are to be served: which are still to be loaded, how one is read and checked, which were refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.check import load_checked
from fmplex_backend.repository.tasks import TaskSpec
from fmplex_backend.serving.prefetching import Prefetching
from fmplex_backend.serving.reconcile import Attach, RefusedVersion
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.types import Extensions, Runtime

Found = TypeVar("Found")

RETRY_S = 5.0  # what raised when it was loaded is loaded again after this time


class VersionLoading:
    """Loads versions one by one. In a turn of the loader's, but for `read`, which any thread may call at any time.

    Args:
        confinement: what a version may have read.
        clock: seconds, the engine's.
    """

    def __init__(
        self, runtime: Runtime, confinement: Confinement, clock: Callable[[], float], task_log: TaskLog
    ) -> None:
        self.runtime, self.confinement, self.clock = runtime, confinement, clock
        self.task_log = task_log
        self.due: list[Attach] = []  # versions that the last round found are to be loaded
        self.prefetching = Prefetching(self.load, clock)
        self._refused: dict[str, RefusedVersion] = {}  # by task
        self._raised: dict[str, tuple[RefusedVersion, float]] = {}  # by task; until when it is not loaded again

    def next_due(self, only: Collection[str] | None) -> Attach | None:
        """The first version that is to be loaded, of these tasks or of all; None where there is none."""
        return next((change for change in self.due if only is None or change.spec.name in only), None)

    def take_prefetched(self, spec: TaskSpec) -> Extensions | Exception | None:
        """What `Prefetching` has of a version, or why it does not fit its entry; None where it has nothing of it."""
        return _returned_or_raised(self.prefetching.take, spec)

    def read(self, spec: TaskSpec) -> Extensions | Exception:
        """Read and check a version's files; what is wrong with them is returned, of whatever type. Any thread."""
        return _returned_or_raised(self._read, spec)

    def load(self, spec: TaskSpec) -> Extensions:
        """What was prefetched of a version, else what its files hold; raises TaskRefused."""
        found = self.prefetching.take(spec)
        return self._read(spec) if found is None else found

    def _read(self, spec: TaskSpec) -> Extensions:
        with self.confinement.around(spec.version.path, spec.version.size):
            return load_checked(self.runtime.load, spec)

    # -- versions that were refused

    @property
    def refused(self) -> Mapping[str, RefusedVersion]:
        """By task, the version that is not to be loaded again as it is: its files are wrong, or it raised just now."""
        now = self.clock()
        return self._refused | {name: version for name, (version, until) in self._raised.items() if now < until}

    def refuse(self, spec: TaskSpec, raised: Exception) -> TaskRefused:
        """Remember what came of loading a version, and say it as an error of the task."""
        if isinstance(raised, TaskRefused):
            error = raised.without_traceback()
            self._refused[spec.name] = RefusedVersion(spec, error)
            return error
        self.task_log.raised(spec.name, raised)
        problem = f"loading it raised {type(raised).__name__}: {raised}"
        error = TaskRefused(spec.version.path, "(whole version)", problem, "See the server's log")
        self._raised[spec.name] = RefusedVersion(spec, error), self.clock() + RETRY_S
        return error

    def forget_refused(self, name: str) -> None:
        """Forget what came of this task's versions: one was loaded, or it is gone."""
        self._refused.pop(name, None)
        self._raised.pop(name, None)

    def keep_refused(self, names: Collection[str]) -> None:
        """Forget those of all tasks but these."""
        for name in (self._refused.keys() | self._raised.keys()) - set(names):
            self.forget_refused(name)


def _returned_or_raised(load: Callable[[TaskSpec], Found], spec: TaskSpec) -> Found | Exception:
    """One task's files must not end the thread that reads them for all."""
    try:
        return load(spec)
    except Exception as error:
        return error
