"""Which directories of a repository something has changed in, at any depth, as the system tells."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fmplex_backend.confinement import is_inside
from fmplex_backend.repository.inotify import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    IGNORED,
    MODIFY,
    MOVE_SELF,
    MOVED_FROM,
    MOVED_TO,
    NO_LINK,
    OVERFLOW,
    Inotify,
)

# Not OPEN: whoever reads the repository would be told of their own reading.
CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
APPEARS = CREATE | MOVED_TO | ATTRIB  # it may be a directory, or one that can be read now
# Of a path: it is a file, or gone by now, or closed to us; its directory is refused for other reasons, if at all.
PASSED_OVER = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)


class Tree:
    """Follows a root and everything below it. Raises OSError where that cannot be.

    Links to directories are followed within the root and into the roots that are allowed: elsewhere nothing is read,
    and a link may lead to all of the file system.

    Args:
        allowed: real paths.
    """

    def __init__(self, root: Path, allowed: Sequence[str] = ()) -> None:
        self._root = os.fsencode(root)
        self._allowed = (os.path.realpath(self._root), *map(os.fsencode, allowed))
        self._inotify = Inotify()
        try:
            self._follow_all()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Follow no more."""
        self._inotify.close()

    def wait(self, seconds: float) -> bool:
        """Whether something changes within this time."""
        return self._inotify.wait(seconds)

    def take(self) -> set[str] | None:
        """The names in the root of what has changed since this was asked last; None: anything may have.

        Raises OSError once the root is another directory, or none.
        """
        found: set[bytes] = set()
        for watch, mask, name in self._inotify.events():
            if mask & OVERFLOW:
                self._follow_all()
                return None
            if watch == self._root_watch and mask & (IGNORED | MOVE_SELF):
                raise OSError(errno.ESTALE, "it was removed, moved or unmounted")
            if mask & IGNORED:
                self._names.pop(watch, None)
                self._paths.pop(watch, None)
            elif watch in self._paths:
                inside = {name} if watch == self._root_watch else self._names[watch]
                found |= inside
                if mask & APPEARS and name:
                    for each in inside:
                        self._follow(each, os.path.join(self._paths[watch], name))
        return set(map(os.fsdecode, found - {b""}))

    def _follow_all(self) -> None:
        self._names: dict[int, set[bytes]] = {}  # by watch: what it lies in, of the root's directories
        self._paths: dict[int, bytes] = {}  # by watch
        self._root_watch = self._inotify.watch(self._root, CHANGES | MOVE_SELF)
        self._paths[self._root_watch] = self._root
        for name in os.listdir(self._root):
            self._follow(name, os.path.join(self._root, name))

    def _follow(self, name: bytes, path: bytes) -> None:
        """Follow what lies at a path in the directory `name` of the root."""
        left = [path]
        while left:
            path = left.pop()
            is_link = os.path.islink(path)
            if is_link and not is_inside(os.path.realpath(path), self._allowed):
                continue
            try:
                watch = self._inotify.watch(path, CHANGES | (0 if is_link else NO_LINK))
            except OSError as error:
                if error.errno in PASSED_OVER:
                    continue
                raise
            if watch == self._root_watch or name in self._names.get(watch, ()):  # also where a link leads back
                continue
            self._names.setdefault(watch, set()).add(name)
            self._paths[watch] = path
            with suppress(OSError), os.scandir(path) as entries:
                left += [entry.path for entry in entries if entry.is_dir()]
