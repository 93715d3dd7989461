"""Which task has each tag, and whose requests may come with it besides.

A backbone sees of a request the tag and not the task. Where Triton may send requests of two tasks with one tag, none of
them can be answered: the answer could be another task's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fmplex_backend.repository.tags import keeper_of
from fmplex_backend.repository.tasks import BrokenTask, Entry


class Models(Protocol):
    """The server's models, as far as a backbone may ask about them."""

    def is_loaded(self, name: str) -> bool | None:
        """Whether requests may come by this model's entry; None before the first request, when none has come."""

    def loaded_tags(self, name: str) -> Collection[int] | None:
        """The tags in the entry by which a loaded model's requests come; None where that is not known."""

    def unload(self, name: str) -> None:
        """Unload a model; raises ServerProblem where that is not done."""

    def close_old(self) -> None:
        """Close connections to the server, which waits for them when it is told to end."""


class UnknownModels:
    """Models of a server that cannot be asked which it has loaded: the grace alone decides."""

    def is_loaded(self, name: str) -> bool:
        """Not known to be."""
        return False

    def loaded_tags(self, name: str) -> None:
        """Not known."""

    def unload(self, name: str) -> None:
        """Nothing is known to be loaded."""

    def close_old(self) -> None:
        """There are none."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the entries of one reading claim: by tag, the names of the tasks."""

    by_tag: Mapping[int, tuple[str, ...]]

    @staticmethod
    def of(entries: Mapping[str, Entry], former: Mapping[str, int]) -> Claims:
        """An entry that cannot be read keeps the tag it had: its clients must not be answered by another task."""
        found: dict[int, tuple[str, ...]] = {}
        for name, entry in entries.items():
            tag = former.get(name) if entry.vfm is None and isinstance(entry, BrokenTask) else entry.vfm
            if tag is not None:
                found[tag] = (*found.get(tag, ()), name)
        return Claims(found)

    def tags(self) -> dict[str, int]:
        """The tag of each task."""
        return {name: tag for tag, names in self.by_tag.items() for name in names}


NONE_RESERVED: Mapping[int, str] = {}


class Tags:
    """Decides, round by round, which task keeps a tag that several claim or that had another task before.

    Args:
        models: the server's.
        has_moved: whether requests of a task have come with another tag than this one, so that the server no longer
            sends them by an entry with this one.
        oldest: of several tasks; raises OSError where their files cannot be read.
        grace: seconds that requests may be on their way after the server has unloaded a task.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        models: Models,
        has_moved: Callable[[str, int], bool],
        oldest: Callable[[Iterable[str]], str],
        grace: float,
    ) -> None:
        self.clock, self.models, self.has_moved, self.oldest = clock, models, has_moved, oldest
        self.grace = grace
        self.claims = Claims({})
        self.keepers: Mapping[int, str] = {}
        self.last_keepers: Mapping[int, str] = {}  # of every tag that a task ever had
        self.newcomers: Mapping[int, tuple[str, ...]] = {}  # by tag: those that claim it and do not keep it
        self._are_loaded: Mapping[str, bool | None] = {}  # whether newcomers are, as `Models.is_loaded` said last
        self.loaded_newcomers: Mapping[int, tuple[str, ...]] = {}  # those of them that the server has loaded
        # by tag: others than its last keeper whose requests may come with it
        self.rivals: Mapping[int, tuple[str, ...]] = {}
        self._reserved: Mapping[int, str] = {}
        self.until = math.inf  # by the clock: when the first of them may send nothing any more, as far as that is known
        # by tag and task: until when its requests may come with it; None while that depends on the server
        self._senders: dict[int, dict[str, float | None]] = {}

    def settle(self, entries: Mapping[str, Entry], reserved: Mapping[int, str] = NONE_RESERVED) -> None:
        """Take in what stands in the repository. Raises OSError as `oldest` does: then nothing has changed.

        Args:
            reserved: by tag, the task that keeps it where it claims it, whoever else does.
        """
        self._reserved = reserved
        former = self.claims.tags()
        claims = Claims.of(entries, former)
        keepers = {tag: self._keeper(tag, names) for tag, names in claims.by_tag.items()}
        self.claims, now = claims, claims.tags()
        for name, tag in former.items():
            if now.get(name) != tag and (self.keepers[tag] == name or self.models.is_loaded(name) is not False):
                self._senders.setdefault(tag, {})[name] = None
        for tag, keeper in self.keepers.items():
            if keepers.get(tag, keeper) != keeper:  # what it was sent may be on its way
                self._senders.setdefault(tag, {})[keeper] = None
        self.keepers = keepers
        self.newcomers = {
            tag: tuple(name for name in names if name != self.keepers[tag])
            for tag, names in self.claims.by_tag.items()
            if len(names) > 1
        }
        self.last_keepers = {**self.last_keepers, **self.keepers}
        self._are_loaded = {name: self.models.is_loaded(name) for names in self.newcomers.values() for name in names}
        self.loaded_newcomers = {
            tag: loaded
            for tag, names in self.newcomers.items()
            if (loaded := tuple(filter(self._are_loaded.get, names)))
        }
        rivals = {tag: self._rivals(tag) for tag in {*self._senders, *self.newcomers}}
        self.rivals = {tag: names for tag, names in rivals.items() if names}
        ends = (until for senders in self._senders.values() for until in senders.values() if until is not None)
        self.until = min(ends, default=math.inf)

    def is_free(self, tag: int, name: str) -> bool:
        """Whether no other task claims a tag, and no requests of another may come with it."""
        return tag not in self.claims.by_tag and not self._senders.get(tag, {}).keys() - {name}

    def may_send(self, name: str, tag: int) -> bool:
        """Whether the server may send a newcomer's requests now: asked when a request comes with a tag of several."""
        if name in self.rivals.get(tag, ()):
            return True
        is_loaded = self.models.is_loaded(name)
        return is_loaded is None or (is_loaded and self._is_loaded_with(tag, name))

    def _is_loaded_with(self, tag: int, name: str) -> bool:
        """Whether a loaded model's requests may come with a tag: its entry may have changed since it was loaded."""
        tags = self.models.loaded_tags(name)
        return tags is None or tag in tags

    def _keeper(self, tag: int, names: tuple[str, ...]) -> str:
        """The one it is reserved for; else as `keeper_of` decides. The server is asked only where several claim it."""
        if (reserved_for := self._reserved.get(tag)) is not None and reserved_for in names:
            return reserved_for
        if len(names) == 1:
            return names[0]
        return keeper_of(names, holder=self.keepers.get(tag), is_loaded=self.models.is_loaded, oldest=self.oldest)

    def _rivals(self, tag: int) -> tuple[str, ...]:
        senders, last = self._senders.setdefault(tag, {}), self.last_keepers[tag]
        if tag in self.keepers:
            senders.pop(last, None)
        newcomers = self.newcomers.get(tag, ())
        for name in {*senders, *newcomers} - {last}:
            self._follow(senders, name, tag, claims=name in newcomers)
        if not senders:
            del self._senders[tag]
        return tuple(sorted(senders.keys() - {last}))

    def _follow(self, senders: dict[str, float | None], name: str, tag: int, *, claims: bool) -> None:
        """One that claims it sends while it is loaded with it; a former one until it is seen unloaded, or moved."""
        is_loaded: bool | None = False
        if claims:
            is_loaded = self._are_loaded[name] and self._is_loaded_with(tag, name)
        elif senders[name] is None:
            is_loaded = self.models.is_loaded(name)
        if is_loaded and (claims or not self.has_moved(name, tag)):
            senders[name] = None
            return
        if name not in senders or is_loaded is None:  # a newcomer that was never seen loaded has sent nothing
            return
        until = senders[name]
        if until is None:
            until = senders[name] = self.clock() + self.grace
        if self.clock() >= until:
            del senders[name]
