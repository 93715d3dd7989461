"""When the model repository is read: at every change of it, every few seconds, and for requests whose tag is unknown
or may have become another task's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from fmplex_backend.repository.following import Following
from fmplex_backend.serving.loader import Loader

log = logging.getLogger("fmplex")

SETTLE_S = 0.25  # how often, at least, it is looked whether a tag of which two tasks' requests may come is one task's

SOONEST_S = 0.005  # between two such looks

LookUp = Callable[[], None]


class _Asked(NamedTuple):
    then: LookUp
    name: str  # of the directory to be read; "" for all


class Watch:
    """Calls a loader's `refresh`, on three threads: `follow_forever`, `look_up_forever` and `settle_forever`.

    Triton may know of a task before the change on disk has been seen here: a request with an unknown tag is answered
    only after another look at the repository.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._following = Following(loader.repository.root, self._look)
        self._look_ups: SimpleQueue[_Asked | None] = SimpleQueue()
        self._stop = threading.Event()
        self._unsettled = threading.Event()  # a round has found what the next must not wait for

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        self._following.stop()
        self._unsettled.set()
        self._look_ups.put(None)

    # -- changes on disk

    def follow_forever(self) -> None:
        """Follow changes on disk until stopped."""
        self._following.follow_forever()

    def _refresh(self, names: Iterable[str] | None = None) -> None:
        """A round; what goes wrong in one is no reason to serve nothing any more, and the next reads everything."""
        try:
            self.loader.refresh(names)
        except Exception:
            log.exception("reading the model repository; the tasks stay as they are")

    def _look(self, names: Iterable[str] | None = None) -> None:
        """A round for what has changed on disk, or for a request: a newcomer that it finds is unloaded at once."""
        self._refresh(names)
        if self.loader.has_newcomers:
            self._unsettled.set()

    # -- changes that come with time, or with what the server has loaded

    def settle_forever(self) -> None:
        """Give the loader rounds while it waits for something else than a change on disk, until stopped."""
        while not self._stop.is_set():
            self._unsettled.wait(max(SOONEST_S, min(SETTLE_S, self.loader.settles_in)))
            self._unsettled.clear()
            if not (self._stop.is_set() or self.loader.is_settled):
                self.loader.unload_newcomers()
                self._refresh(())

    # -- requests with unknown tags

    def look_up(self, then: LookUp, name: str = "") -> None:
        """Read the repository, or the directory of that name in it, then call `then` on the look-up thread. Any thread.

        A client may have given the name: where no directory of the repository has it, all of them are read.
        """
        try:
            is_one = self.loader.repository.has(name)
        except (OSError, ValueError):  # a file system that is away, or a name that no directory can have
            is_one = False
        self._look_ups.put(_Asked(then, name if is_one else ""))

    def look_up_forever(self) -> None:
        """Read the repository for whoever has asked for it, until stopped."""
        while (first := self._look_ups.get()) is not None:
            asked = [first]
            while not self._look_ups.empty():  # one round serves all that have asked by now
                if (another := self._look_ups.get()) is None:
                    self._look_ups.put(None)
                    break
                asked.append(another)
            try:
                names = {each.name for each in asked}
                self._look(None if "" in names else names)
                while asked:
                    asked.pop(0).then()
            finally:
                for left in asked:  # this thread is dying: `unanswered` returns them
                    self._look_ups.put(left)

    def unanswered(self) -> list[LookUp]:
        """Take the look-ups out that wait: for when no thread serves them any more. Any thread."""
        left = []
        with suppress(Empty):
            while True:
                if (asked := self._look_ups.get_nowait()) is not None:
                    left.append(asked.then)
        self._look_ups.put(None)  # ends the thread, where it is still there
        return left
