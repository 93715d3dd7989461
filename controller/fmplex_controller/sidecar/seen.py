"""What a round goes by: the directories of the repository, the models of the server, and what was tried before."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from fmplex_backend.repository.inspection import Inspected


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of the repository."""

    name: str
    fingerprint: str  # of all its files
    still_s: float  # for how long it has had this fingerprint
    inspected: Inspected
    unloaded: bool = False  # it holds the file UNLOADED
    error: str = ""  # what its ERROR.txt says; "" without one


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the server has it."""

    ready: bool  # requests reach it
    for_s: float = 0.0  # for how long it has been so, or not


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last time a directory was completed or loaded: as what, and with which outcome."""

    fingerprint: str
    depends: str = ""  # what else the outcome depends on
    error: str = ""  # "" where it succeeded
    still_s: float = math.inf  # for which its directory had been as it was
    again: bool = True  # it was loaded already; where it was not, somebody may have loaded it by hand since


@dataclass(frozen=True, slots=True)
class Miss:
    """A probe that a backbone's process did not answer; so many of them in a row are `enough` to call it unhealthy."""

    reason: str
    enough: int


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A backbone whose process does not answer, or did not a moment ago."""

    reason: str
    unload: bool  # it is still loaded
    hold: bool  # it is not to be loaded yet
    given_up: bool = False  # it is not loaded again until its directory changes
    pid: int = 0  # of the process, where it runs; 0: it has never told


@dataclass(frozen=True, slots=True)
class Tags:
    """Which task has each tag of a backbone, by what its process told last."""

    by_tag: Mapping[int, str]  # names as `printable` makes them
    age_s: float  # since it was asked


@dataclass(frozen=True, slots=True)
class Seen:
    """All of it, by name."""

    directories: Mapping[str, Directory]
    models: Mapping[str, Model]
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    unhealthy: Mapping[str, Unhealthy] = field(default_factory=dict)
    gone_s: Mapping[str, float] = field(default_factory=dict)  # loaded models without a directory: for how long
    tags: Mapping[str, Tags] = field(default_factory=dict)  # by backbone; of those that are loaded and have told


class Since:
    """Since when something has been as it is."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Hashable, float]] = {}

    def seconds(self, name: str, value: Hashable, now: float) -> float:
        """For how long `name` has had this value."""
        known = self._known.get(name)
        if known is None or known[0] != value:
            self._known[name] = known = (value, now)
        return now - known[1]

    def keep(self, names: Mapping[str, object]) -> None:
        """Forget all other names."""
        for name in self._known.keys() - names.keys():
            del self._known[name]
