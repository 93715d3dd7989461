"""When the model repository is read: at every change of it, every few seconds, and for requests whose tag is unknown
or may have become another task's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from fmplex_backend.repository.following import Following
from fmplex_backend.serving.loader import Loader
from fmplex_backend.serving.look_ups import LookUp, LookUps

log = logging.getLogger("fmplex")

SETTLE_S = 0.25  # how often, at least, it is looked whether a tag of which two tasks' requests may come is one task's

SOONEST_S = 0.005  # between two such looks
# After a version was loaded while batches run: so many times what that took of the processor, and at most so long.
PAUSES, LONGEST_PAUSE_S = 5.0, 0.2


class Watch:
    """Has a loader read the repository, on five threads.

    They run `follow_forever`, `look_up_forever`, `look_up_claims_forever`, `ask_forever` and `settle_forever`. Triton
    may know of a task before the change on disk has been seen here: a request with an unknown tag is answered only
    after another look at the repository. One with a served task's tag waits for less: that it is certain whose the tag
    is, and not that what came is loaded.

    Args:
        each_round: called some times a second.
    """

    def __init__(self, loader: Loader, each_round: Callable[[], None] = lambda: None) -> None:
        self.loader, self._each_round = loader, each_round
        self._following = Following(loader.repository.root, self._settle_changed, loader.loading.confinement.roots)
        self._look_ups, self._claims = LookUps(self._look_up), LookUps(self._read_claims)
        self._asks = LookUps(lambda names: None)
        self._stop = threading.Event()
        self._is_due = threading.Event()  # claims were read, and what they are of may be to be loaded
        self._unsettled = threading.Event()  # a round has found what the next must not wait for

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        self._following.stop()
        self._unsettled.set()
        self._look_ups.stop()
        self._claims.stop()
        self._asks.stop()

    # -- changes on disk

    def follow_forever(self) -> None:
        """Follow changes on disk until stopped."""
        self._following.follow_forever()

    def _settle_changed(self, names: Iterable[str] | None = None) -> None:
        """A round for what has changed on disk; `settle_forever` unloads the newcomers and loads the versions of it."""
        self._guarded(lambda: self.loader.settle(names))
        self._unsettled.set()

    def _look_up(self, names: set[str] | None) -> None:
        """A round for requests that wait for it: what they wait for is loaded at once."""
        self._guarded(lambda: self.loader.refresh(names, only=names))
        self._unsettled.set()

    def _read_claims(self, names: set[str] | None) -> None:
        """Part of a round, for requests that wait for no more; where changes are not reported, the rest is due."""
        self._guarded(lambda: self.loader.read_claims(names))
        self._is_due.set()
        self._unsettled.set()

    @staticmethod
    def _guarded(part: Callable[[], object]) -> None:
        """What goes wrong in a round is no reason to serve nothing any more, and the next reads everything."""
        try:
            part()
        except Exception:
            log.exception("reading the model repository; the tasks stay as they are")

    # -- changes that come with time, or with what the server has loaded, and versions to be loaded

    def settle_forever(self) -> None:
        """Do what is left of a round, and give the loader rounds while it waits for more than that, until stopped.

        Versions are loaded one by one with pauses: loading takes the time of the processor that passes want, and of the
        interpreter.
        """
        while not self._stop.is_set():
            self._unsettled.wait(max(SOONEST_S, min(SETTLE_S, self.loader.settles_in)))
            self._unsettled.clear()
            if self._stop.is_set():
                return
            self._guarded(self._each_round)
            if is_due := self._is_due.is_set():
                self._is_due.clear()  # before the round: claims that are read from now on are of the next one
            self._guarded(self.loader.rounds.unload_newcomers)
            if is_due or not self.loader.is_settled:
                self._guarded(lambda: self.loader.settle(()))
            self._guarded(self._load_one)

    def _load_one(self) -> None:
        start = time.thread_time()
        if self.loader.load_next():
            self._unsettled.set()
            if not self.loader.engine.is_idle:
                self._stop.wait(min(LONGEST_PAUSE_S, PAUSES * (time.thread_time() - start)))

    # -- requests with unknown tags, or with tags of which it is doubtful whose they are

    def look_up(self, then: LookUp, *names: str) -> None:
        """Read the repository, or directories in it, then call `then` on the look-up thread. Any thread.

        A client may have given a name: where no directory of the repository has it, all of them are read.
        """
        try:
            are_there = bool(names) and all(map(self.loader.repository.has, names))
        except (OSError, ValueError):  # a file system that is away, or a name that no directory can have
            are_there = False
        self._look_ups.put(then, set(names) if are_there else None)

    def look_up_claims(self, then: LookUp, names: set[str]) -> None:
        """Read which tags these directories claim, then call `then` on the thread for that. Any thread."""
        self._claims.put(then, names)

    def look_up_forever(self) -> None:
        """Read the repository for whoever has asked for it, until stopped."""
        self._look_ups.serve_forever()

    def look_up_claims_forever(self) -> None:
        """Read claims for whoever has asked for them, until stopped."""
        self._claims.serve_forever()

    def ask(self, then: LookUp) -> None:
        """Call `then`, which asks the server and so may have to wait, on the thread for that. Any thread."""
        self._asks.put(then, set())

    def ask_forever(self) -> None:
        """Call who wants to ask the server, until stopped."""
        self._asks.serve_forever()

    def unanswered(self) -> list[LookUp]:
        """Take the look-ups out that wait: for when no thread serves them any more. Any thread."""
        return [*self._look_ups.take(), *self._claims.take(), *self._asks.take()]
