"""Whether a tag is still its task's when a request comes, before the change on disk has been read here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fmplex_backend.repository.tasks import CONFIG, Stamp, is_hidden, stamp
from fmplex_backend.serving.edits import Edits
from fmplex_backend.serving.loader import Loader

SETTLED_S = 0.02  # file systems stamp changes by a clock of up to 10 ms: a listing before may lack the last of them
PENDING_S = 10.0  # how long one without an entry that is not followed is looked at again; the watch tells of it later


@dataclass(frozen=True, slots=True)
class _Listing:
    """The repository's directory as it was listed last."""

    modified: int  # its mtime in ns
    seen_at: float  # when that was first seen, by the clock
    is_final: bool  # no more can have changed at that mtime when it was listed


class Ownership:
    """Asked for every request, on the threads that take requests in: three calls of the system where nothing changed.

    Where several tasks claim a tag, the server has to be asked, too: `asks_server`.

    A request can come by an entry only after the server has loaded it, so its entry stands on disk before. The
    repository's directory shows directories that came, `Edits` entries that were written in one that was there. Where
    it cannot follow one (see there), the watch tells of it.
    """

    def __init__(self, loader: Loader, clock: Callable[[], float]) -> None:
        self.loader, self.repository, self.clock = loader, loader.repository, clock
        self._root = os.fspath(self.repository.root)
        self._edits = Edits(self._root, CONFIG)
        self._reading = threading.Lock()  # what one thread takes from `_edits` another must not go without
        self._listing: _Listing | None = None
        self._known: set[tuple[str, int]] = set()  # (name, inode) of the directories whose entry was read
        self._pending: dict[str, float] = {}  # directories without an entry: until when they are looked at again
        # by tag: directories in whose entries it stands, and which the loader may not have read yet
        self._unread: dict[int, set[str]] = {}
        self._entries: dict[str, tuple[Stamp, int | None]] = {}  # by task: the entry that was read, and its tag

    def look(self) -> None:
        """List and read what is there; else the first request waits for that."""
        with suppress(OSError):
            self._list(os.stat(self._root).st_mtime_ns)

    def asks_server(self, claims: Iterable[tuple[str, int]]) -> bool:
        """Whether `doubts` would ask the server, as far as is known now."""
        return any(tag in self.loader.tags.newcomers for _, tag in claims)

    def doubts(self, claims: Sequence[tuple[str, int]]) -> set[str]:
        """Directories to be read before a request is one of these tasks and groups for certain; empty: it is.

        Args:
            claims: each with the tag that it has in the loader's table.
        """
        try:
            modified = os.stat(self._root).st_mtime_ns
        except OSError:
            return set()  # a file system that is away for a moment says nothing about the task
        if self._changed(modified):
            self._list(modified)
        if self._pending:
            self._look_again()
        with self._reading:
            for edited in self._edits.take():
                self._read_again(edited)
        return set().union(*(self._doubts_of(name, tag) for name, tag in claims))

    def _doubts_of(self, name: str, tag: int) -> set[str]:
        unread = {each for each in [*self._unread.get(tag, ())] if each != name and not self._is_read(each, tag)}
        newcomers = self.loader.tags.newcomers.get(tag, ())
        others = unread or {each for each in newcomers if self.loader.tags.may_send(each, tag)}
        return {name, *others} if others or not self._is_owner(name, tag) else set()

    def _is_owner(self, name: str, tag: int) -> bool:
        """Whether requests with a tag are for the vFM that the table has for it, by the task's entry as it is now."""
        has = self._entry_has(name, tag)
        # One that has left and whose entry is back is answered by its new vFM: that its requests come with this tag
        # again counts only there (see `Tags`).
        return not has if self.loader.has_left(tag) else has

    # -- the task's own entry

    def _entry_has(self, name: str, tag: int) -> bool:
        try:
            now = stamp(f"{self._root}/{name}/{CONFIG}")
            known = self._entries.get(name)
            if known is None or known[0] != now:
                known = self._entries[name] = (now, self.repository.tag(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return known[1] == tag

    # -- directories that came

    def _changed(self, modified: int) -> bool:
        listing = self._listing
        return listing is None or listing.modified != modified or not listing.is_final

    def _list(self, modified: int) -> None:
        former, now = self._listing, self.clock()
        seen_at = former.seen_at if former is not None and former.modified == modified else now
        with suppress(OSError), os.scandir(self._root) as entries:
            found = {(entry.name, entry.inode()) for entry in entries if not is_hidden(entry.name)}
            new = found - self._known
            self._known &= found
            for name, inode in new:
                self._read(name, inode)
            self._listing = _Listing(modified, seen_at, is_final=now >= seen_at + SETTLED_S)

    def _read(self, name: str, inode: int) -> None:
        is_followed = self._edits.follow(name)
        tags: Collection[int] = ()
        try:
            tags = self.repository.tags_it_may_have(name)
        except FileNotFoundError:
            if not is_followed:
                self._pending.setdefault(name, self.clock() + PENDING_S)
            self._known.add((name, inode))
            return
        except OSError:
            pass
        self._known.add((name, inode))
        self._pending.pop(name, None)
        self._note(name, tags)

    def _note(self, name: str, tags: Iterable[int]) -> None:
        for tag in tags:
            self._unread.setdefault(tag, set()).add(name)

    def _read_again(self, name: str) -> None:
        self._edits.follow(name)  # it may be another directory, even with the inode of the former
        with suppress(OSError):
            self._note(name, self.repository.tags_it_may_have(name))

    def _look_again(self) -> None:
        for name, until in [*self._pending.items()]:
            try:
                tags = self.repository.tags_it_may_have(name)
            except OSError:
                if self.clock() >= until:
                    self._pending.pop(name, None)
                continue
            self._pending.pop(name, None)
            self._note(name, tags)

    def _is_read(self, name: str, tag: int) -> bool:
        """Whether the loader has taken the entry in, so that the table says who has the tag; or it has another tag."""
        if not self.loader.has_read(name, tag) and self._may_have(name, tag):
            return False
        self._unread[tag].discard(name)
        return True

    def _may_have(self, name: str, tag: int) -> bool:
        """Of an entry in which the tag stands, perhaps in a comment."""
        self.repository.forget(name)  # two changes within one tick of the file system's clock look like one
        try:
            return self.repository.tag(name) == tag
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
