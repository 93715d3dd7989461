"""A round: the repository is read, its claims of tags are settled, and the entries are compared with what is served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from fmplex_backend.errors import FmplexError, TagContested
from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.repository.tasks import BrokenTask, Entry, Repository
from fmplex_backend.serving.groups import Groups
from fmplex_backend.serving.reconcile import Change, RefusedVersion, Served, changes, contested, without_conflicts
from fmplex_backend.serving.tags import Models, Tags
from fmplex_backend.serving.tasklog import TaskLog

log = logging.getLogger("fmplex")


class Rounds:
    """Finds out what has to change. In a turn of the loader's, but for `unload_newcomers`.

    Args:
        served: by name, the tasks that are served; changed by who carries out the changes.
        models: the server's.
        clock: seconds, the engine's.
        slots: tags from 0 to slots - 1 exist.
        grace: see `Tags` and `Groups`.
    """

    def __init__(
        self,
        repository: Repository,
        served: Mapping[str, Served],
        models: Models,
        clock: Callable[[], float],
        task_log: TaskLog,
        *,
        slots: int,
        grace: float,
    ) -> None:
        self.repository, self.models, self.clock, self.slots = repository, models, clock, slots
        self.task_log = task_log
        self.groups = Groups(grace)
        self.tags = Tags(clock, models=models, has_moved=self._has_moved, oldest=repository.oldest, grace=grace)
        self.readings = 0  # of the repository
        self._served = served
        self._entries: dict[str, Entry] = {}

    # -- reading

    def read(self, names: Iterable[str] | None, reserved: Mapping[int, str]) -> bool:
        """Read the repository, and settle who claims which tag; False, and nothing changed, where it cannot be read.

        Args:
            names: the directories to be read; None: all.
            reserved: see `Tags.settle`.
        """
        try:
            entries = self._read_entries(names)
            self.tags.settle(entries, reserved)
        except OSError as error:  # a file system that is away for a moment must not remove every task
            log.error("the model repository cannot be read, the tasks stay as they are: %s", error)
            return False
        self._entries = entries  # only now: what is served by entries whose tags are not settled may be another's
        self.readings += 1
        return True

    def _read_entries(self, names: Iterable[str] | None) -> dict[str, Entry]:
        looked = None if names is None else set(names)
        found = self.repository.read(looked, self._entries)
        kept = {} if looked is None else {name: e for name, e in self._entries.items() if name not in looked}
        return kept | found

    # -- tags

    def is_free(self, tag: int, name: str) -> bool:
        """Whether a tag exists, and no other task's requests may come with it than this one's."""
        return tag < self.slots and self.tags.is_free(tag, name)

    def contested(self, asked_for: Iterable[int]) -> dict[int, TagContested]:
        """Why no request is answered, of these tags and those that a task keeps, where several tasks' may come."""
        tags = {*self.tags.keepers, *asked_for}
        return {tag: self._contested(tag, rivals) for tag, rivals in self.tags.rivals.items() if tag in tags}

    def _contested(self, tag: int, rivals: Sequence[str]) -> TagContested:
        keeper, newcomers = self.tags.last_keepers[tag], self.tags.newcomers.get(tag, ())
        error = contested(tag, keeper, rivals, newcomers, self.repository.root)
        self.task_log.contested(tag, str(error))
        return error

    def unload_newcomers(self) -> None:
        """Take tasks whose tag another one keeps off the server: their requests are answered by nobody then.

        Not in a turn, and not on the engine's thread: the server may take its time.
        """
        for tag, names in self.tags.loaded_newcomers.items():
            for name in names:
                self._unload(name, tag)

    def _unload(self, name: str, tag: int) -> None:
        try:
            if self.repository.tag(name) == tag and self.models.is_loaded(name):  # it may have another tag by now
                self.models.unload(name)
                self.task_log.unloaded(name, tag, self.tags.last_keepers[tag])
        except FmplexError as error:
            self.task_log.stays_loaded(name, str(error))
        except OSError:
            return  # its entry is gone, or cannot be read now

    def _has_moved(self, name: str, tag: int) -> bool:
        group = self.groups.served.get(name)
        if group is not None:
            return group.spec.vfm != tag and group.counts.requests > 0
        served = self._served.get(name)
        return served is not None and served.spec.vfm != tag and served.vfm.intake.requests > 0

    # -- the comparison

    def compare(self, refused: Mapping[str, RefusedVersion]) -> list[Change]:
        """Every change of a task that is due, after the groups were brought in step.

        Args:
            refused: by task, the version that is not to be loaded again as it is.
        """
        entries = without_conflicts(
            self._entries,
            self.tags.claims.by_tag,
            self.tags.keepers,
            slots=self.slots,
            root=self.repository.root,
            backbone=self.repository.backbone,
        )
        groups = {name: entry for name, entry in entries.items() if isinstance(entry, GroupSpec)}
        tasks = {name: entry for name, entry in entries.items() if not isinstance(entry, GroupSpec)}
        broken = [name for name, entry in tasks.items() if isinstance(entry, BrokenTask)]
        self.groups.settle(groups, broken, self.clock())
        return changes(self._served, tasks, refused)

    @property
    def names(self) -> Collection[str]:
        """The directories whose entries were read."""
        return self._entries.keys()
