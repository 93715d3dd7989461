"""Linux's inotify: what happens in directories. Names are the bytes that stand on disk, which need not be UTF-8."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

# of <sys/inotify.h>
MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
MOVE_SELF, OVERFLOW, IGNORED = 0x800, 0x4000, 0x8000  # it was moved; events were lost; a watch has ended
ONLY_DIRECTORIES, NO_LINK = 0x01000000, 0x02000000
HEADER = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
BUFFER = 1 << 16


class Event(NamedTuple):
    """Something that happened to `name` in a directory, or, without a name, to the directory."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An instance of inotify, of which a user may have so many. Raises OSError where there is none."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(None, use_errno=True)
        try:
            self.descriptor: int = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError:  # not Linux, where no server runs
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
        if self.descriptor < 0:
            raise _last_error()
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._close.atexit = False  # a thread may still read, and the process takes it along

    def close(self) -> None:
        """End it with all its watches."""
        self._close()

    def watch(self, directory: bytes, mask: int) -> int:
        """Tell of what happens in a directory; the number of its watch, which it has under any name. Raises OSError.

        Args:
            mask: of the events; with NO_LINK the directory is not taken for what a link in its place leads to.
        """
        number: int = self._library.inotify_add_watch(self.descriptor, directory, mask | ONLY_DIRECTORIES)
        if number < 0:
            raise _last_error()
        return number

    def wait(self, seconds: float) -> bool:
        """Whether there are events within this time."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def events(self) -> Iterator[Event]:
        """Those that there are."""
        while True:
            try:
                data = os.read(self.descriptor, BUFFER)
            except BlockingIOError:  # nothing (more) has happened
                return
            at = 0
            while at < len(data):
                watch, mask, _, size = HEADER.unpack_from(data, at)
                at += HEADER.size + size
                yield Event(watch, mask, data[at - size : at].rstrip(b"\0"))


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
