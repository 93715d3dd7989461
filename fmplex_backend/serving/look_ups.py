"""Calls that wait until directories of the repository have been read anew."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from fmplex_backend.serving.queues import drained

LookUp = Callable[[], None]


class _Asked(NamedTuple):
    then: LookUp
    names: set[str] | None  # of the directories to be read; None for all


class LookUps:
    """Reads for several that ask at a time, on the thread that runs `serve_forever`.

    Args:
        read: some directories, or all of them.
    """

    def __init__(self, read: Callable[[set[str] | None], None]) -> None:
        self._read = read
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()

    def put(self, then: LookUp, names: set[str] | None) -> None:
        """Call `then` once these directories, or all, have been read anew. Any thread."""
        self._asked.put(_Asked(then, names))

    def stop(self) -> None:
        """End `serve_forever`."""
        self._asked.put(None)

    def serve_forever(self) -> None:
        """Until stopped."""
        while (first := self._asked.get()) is not None:
            asked = [first]
            while not self._asked.empty():  # one reading serves all that have asked by now
                if (another := self._asked.get()) is None:
                    self.stop()
                    break
                asked.append(another)
            try:
                names = [each.names for each in asked]
                self._read(None if None in names else set().union(*filter(None, names)))
                while asked:
                    asked.pop(0).then()
            finally:
                for left in asked:  # this thread is dying: `take` returns them
                    self._asked.put(left)

    def take(self) -> list[LookUp]:
        """Take those out that wait, and end `serve_forever` where it still runs. Any thread."""
        left = [asked.then for asked in drained(self._asked) if asked is not None]
        self.stop()
        return left
