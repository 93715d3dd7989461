"""Which files have been written since they were looked at, as Linux tells by inotify.

The kernel tells of a change before the call that made it returns. So what is written before a request is sent is known
when the request comes, which costs one call of the system where nothing has changed. The `Watch` hears of the same
changes some milliseconds later.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger("fmplex")

# of <sys/inotify.h>
MODIFY, CLOSE_WRITE, MOVED_TO, CREATE = 0x2, 0x8, 0x80, 0x100
OVERFLOW, IGNORED = 0x4000, 0x8000  # events were lost; a watch has ended
ONLY_DIRECTORIES = 0x01000000
HEADER = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
BUFFER = 1 << 16


class Edits:
    """Follows one file's name in any number of directories of a root.

    Not seen are changes that another host makes on a network's file system, and those of the file that a link in the
    place of this one leads to.
    """

    def __init__(self, root: str, file: str) -> None:
        self._root, self._file = root, os.fsencode(file)
        self._names: dict[int, str] = {}  # directories, by the number of their watch
        self._said = False
        self._add_watch, self._descriptor = _inotify()
        if self._descriptor is None:
            self._say(ctypes.get_errno())
        else:
            weakref.finalize(self, os.close, self._descriptor)

    def follow(self, name: str) -> bool:
        """Tell of a directory from now on; False where the system does not."""
        if self._descriptor is None:
            return False
        mask = MODIFY | CLOSE_WRITE | MOVED_TO | CREATE | ONLY_DIRECTORIES
        watch = self._add_watch(self._descriptor, os.fsencode(f"{self._root}/{name}"), mask)
        if watch < 0:
            if (error := ctypes.get_errno()) not in (errno.ENOENT, errno.ENOTDIR):
                self._say(error)
            return False
        self._names[watch] = name
        return True

    def take(self) -> set[str]:
        """The directories in which the file may have changed since this was asked last.

        One that was removed is among them, once, and is not followed any more: another may stand in its place.
        """
        found: set[str] = set()
        for watch, mask, file in self._events():
            if mask & OVERFLOW:
                found.update(self._names.values())
            elif mask & IGNORED and watch in self._names:
                found.add(self._names.pop(watch))
            elif file == self._file and watch in self._names:
                found.add(self._names[watch])
        return found

    def _say(self, error: int) -> None:
        """The user may have as many watches as the system allows (fs.inotify.max_user_watches), for one."""
        if not self._said:
            self._said = True
            log.warning(
                "entries edited in place in %s are seen some milliseconds late: %s", self._root, os.strerror(error)
            )

    def _events(self) -> Iterator[tuple[int, int, bytes]]:
        while self._descriptor is not None:
            try:
                data = os.read(self._descriptor, BUFFER)
            except BlockingIOError:  # nothing (more) has happened
                return
            at = 0
            while at < len(data):
                watch, mask, _, size = HEADER.unpack_from(data, at)
                at += HEADER.size + size
                yield watch, mask, data[at - size : at].rstrip(b"\0")


def _inotify() -> tuple[Callable[[int, bytes, int], int], int | None]:
    """The function that adds a watch, and the descriptor to read events from; None where there is no such thing."""
    library: Any = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except AttributeError:  # not Linux, where no server runs
        return _no_watch, None
    return library.inotify_add_watch, descriptor if descriptor >= 0 else None  # the user may have too many


def _no_watch(descriptor: int, path: bytes, mask: int) -> int:
    return -1
