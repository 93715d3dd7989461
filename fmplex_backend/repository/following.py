"""Changes in a model repository as they happen; looked for every second where they cannot be followed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from fmplex_backend.repository.tree import Tree

log = logging.getLogger("fmplex")

QUIET_S = 0.002  # a change is read once nothing has changed for this long
DEBOUNCE_S = 0.01  # changes that go on are read at least this often
RESCAN_S = 5.0  # everything is read this often: some file systems report no changes
STOP_S = 0.2  # how soon it ends once it is stopped
POLL_S = 1.0  # everything is read this often where changes cannot be followed
POLLS = 60  # so many times; then following them is tried again


class Following:
    """Calls `changed` with the names of directories in which something has changed, or None for all of them.

    None comes every few seconds.

    Args:
        allowed: real paths beside the root that links to directories are followed into.
    """

    def __init__(self, root: Path, changed: Callable[[set[str] | None], object], allowed: Sequence[str] = ()) -> None:
        self.root, self._changed, self._allowed = root, changed, allowed
        self._stop = threading.Event()

    def stop(self) -> None:
        """End `follow_forever`."""
        self._stop.set()

    def follow_forever(self) -> None:
        """Follow changes on disk until stopped; poll where the system does not report them."""
        said = ""
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("changes in %s are polled for every %g s: %s", self.root, POLL_S, error)
                self._poll()

    def _poll(self) -> None:
        for _ in range(POLLS):
            self._changed(None)
            if self._stop.wait(POLL_S):
                return

    def _follow(self) -> None:
        with closing(Tree(self.root, self._allowed)) as tree:
            rescan_at = time.monotonic() + RESCAN_S
            while not self._stop.is_set():
                if tree.wait(STOP_S):
                    self._changed(_together(tree))
                elif time.monotonic() < rescan_at:
                    continue
                else:
                    self._changed(None)
                rescan_at = time.monotonic() + RESCAN_S


def _together(tree: Tree) -> set[str] | None:
    """What changes until nothing has for a moment, or for as long as readers may wait."""
    until, found = time.monotonic() + DEBOUNCE_S, tree.take()
    while time.monotonic() < until and tree.wait(QUIET_S):
        more = tree.take()
        found = None if found is None or more is None else found | more
    return found
