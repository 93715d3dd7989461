"""Which files have been written since they were looked at, as Linux tells by inotify.

The kernel tells of a change before the call that made it returns. So what is written before a request is sent is known
when the request comes, which costs one call of the system where nothing has changed. The `Watch` hears of the same
changes some milliseconds later.
"""

from __future__ import annotations

import logging
import os
from errno import ENOENT, ENOTDIR

from fmplex_backend.repository.inotify import CLOSE_WRITE, CREATE, IGNORED, MODIFY, MOVED_TO, OVERFLOW, Inotify

log = logging.getLogger("fmplex")


class Edits:
    """Follows one file's name in any number of directories of a root.

    Not seen are changes that another host makes on a network's file system, and those of the file that a link in the
    place of this one leads to.
    """

    def __init__(self, root: str, file: str) -> None:
        self._root, self._file = root, os.fsencode(file)
        self._names: dict[int, str] = {}  # directories, by the number of their watch
        self._said = False
        self._inotify: Inotify | None = None
        try:
            self._inotify = Inotify()
        except OSError as error:
            self._say(error)

    def follow(self, name: str) -> bool:
        """Tell of a directory from now on; False where the system does not."""
        if self._inotify is None:
            return False
        try:
            watch = self._inotify.watch(os.fsencode(f"{self._root}/{name}"), MODIFY | CLOSE_WRITE | MOVED_TO | CREATE)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                self._say(error)
            return False
        self._names[watch] = name
        return True

    def take(self) -> set[str]:
        """The directories in which the file may have changed since this was asked last.

        One that was removed is among them, once, and is not followed any more: another may stand in its place.
        """
        found: set[str] = set()
        for watch, mask, file in () if self._inotify is None else self._inotify.events():
            if mask & OVERFLOW:
                found.update(self._names.values())
            elif mask & IGNORED and watch in self._names:
                found.add(self._names.pop(watch))
            elif file == self._file and watch in self._names:
                found.add(self._names[watch])
        return found

    def _say(self, error: OSError) -> None:
        """The user may have as many watches as the system allows (fs.inotify.max_user_watches), for one."""
        if not self._said:
            self._said = True
            log.warning("entries edited in place in %s are seen some milliseconds late: %s", self._root, error.strerror)
