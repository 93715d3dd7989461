"""The version of a task that is about to be bound to this backbone, read before it is: then it is served at once.

Its tag can be kept for it, too: then the server can load the entry as soon as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.check import check_entry
from fmplex_backend.repository.tasks import TaskSpec
from fmplex_backend.repository.versions import Version
from fmplex_backend.types import Extensions

KEPT_S = 5.0  # many times what passes between the reading and the binding
# After a reading that no binding followed, none begins for so many seconds, nor for so many times what it took.
LEAST_APART_S, APART = 1.0, 10.0


@dataclass(frozen=True, slots=True)
class _Prefetched:
    """A version that was read, and until when it is kept, by the engine's clock."""

    spec: TaskSpec  # its entry for the other backbone
    extensions: Extensions
    until: float
    is_reserved: bool = False  # its tag


class Prefetching:
    """Keeps one version at a time. Under the loader's lock.

    Any client may ask for a reading, which occupies the look-up thread: how often it is done is bounded, unless tasks
    are bound here after it.

    Args:
        load: reads and checks a version for an entry; raises TaskRefused.
    """

    def __init__(self, load: Callable[[TaskSpec], Extensions], clock: Callable[[], float]) -> None:
        self._load, self._clock = load, clock
        self._kept: _Prefetched | None = None
        self._refused: tuple[TaskSpec, str] | None = None  # the last one, and why
        self._not_before = float("-inf")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept. Any thread."""
        return self._kept is None

    def read(self, spec: TaskSpec) -> str | None:
        """Read, here, the version of a task that another backbone still serves, and keep it for KEPT_S.

        Returns why it would be refused here, "" where it would not be; None where it is not the time to read it, which
        is then done when it is bound here.
        """
        start = self._clock()
        self.drop_expired()
        kept = self._kept
        if kept is not None and _is_same(kept.spec, spec):
            self._kept = replace(kept, spec=spec, is_reserved=kept.is_reserved and kept.spec.vfm == spec.vfm)
            return ""
        if self._refused is not None and self._refused[0] == spec:
            return self._refused[1]
        another = kept is not None and kept.spec.name != spec.name  # that is about to be bound here
        if start < self._not_before or another:
            return None
        try:
            extensions = self._load(spec)
            self._kept = _Prefetched(spec, extensions, self._clock() + KEPT_S)
            return ""
        except TaskRefused as error:
            self._refused = spec, str(error)
            return str(error)
        except Exception as error:  # another time it may not raise, so that it is not kept
            return f"loading it raised {type(error).__name__}: {error}"
        finally:
            self._not_before = start + max(LEAST_APART_S, APART * (self._clock() - start))

    def reserve(self, name: str, is_free: Callable[[int, str], bool]) -> tuple[int | None, float]:
        """Keep the tag of the task that was read for it, as long as what was read; None where that cannot be.

        Returns the tag, and the seconds that are left. The reservation is no claim: an entry is, and it ends with it.

        Args:
            is_free: whether no other task's requests may come with a tag here.
        """
        kept, left = self._kept, 0.0 if self._kept is None else self._kept.until - self._clock()
        if kept is None or kept.spec.name != name or left <= 0 or not is_free(kept.spec.vfm, name):
            return None, 0.0
        self._kept = replace(kept, is_reserved=True)
        return kept.spec.vfm, left

    @property
    def reserved(self) -> Mapping[int, str]:
        """By tag, the task that it is kept for."""
        kept = self._kept
        if kept is None or not kept.is_reserved or self._clock() >= kept.until:
            return {}
        return {kept.spec.vfm: kept.spec.name}

    def take(self, spec: TaskSpec) -> Extensions | None:
        """What was read of the version of a task that is bound here now; None where it was not.

        Raises TaskRefused where its entry does not fit.
        """
        kept = self._kept
        if kept is None or not _is_same(kept.spec, spec) or self._clock() >= kept.until:
            return None
        self._kept = None
        self._not_before = float("-inf")  # the reading was of use, and the next one may be, too
        check_entry(spec, kept.extensions)
        return kept.extensions

    def drop_expired(self) -> list[Version]:
        """Drop what nobody has taken in time; returns its version, or nothing."""
        kept = self._kept
        if kept is None or self._clock() < kept.until:
            return []
        self._kept = None
        return [kept.spec.version]


def _is_same(one: TaskSpec, other: TaskSpec) -> bool:
    """Whether two entries are of one task, with the same files."""
    return (one.name, one.version) == (other.name, other.version)
