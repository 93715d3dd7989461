"""Changes in a model repository as they happen; looked for every second where they cannot be followed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import watch

from fmplex_backend.files import native
from fmplex_backend.printable import printable

log = logging.getLogger("fmplex")

QUIET_MS = 2  # a change is read once nothing has changed for this long
DEBOUNCE_MS = 10  # changes that go on are read at least this often
RESCAN_MS = 5_000  # everything is read this often: some file systems report no changes
POLL_S = 1.0  # everything is read this often where changes cannot be followed
POLLS = 60  # so many times; then following them is tried again


class Following:
    """Calls `changed` with the names of directories in which something has changed, or None for all of them.

    None comes every few seconds.
    """

    def __init__(self, root: Path, changed: Callable[[set[str] | None], object]) -> None:
        self.root, self._changed = root, changed
        self._stop = threading.Event()

    def stop(self) -> None:
        """End `follow_forever`."""
        self._stop.set()

    def follow_forever(self) -> None:
        """Follow changes on disk until stopped; poll where they cannot be followed.

        That is so where the system does not report them, and where watchfiles finds a name that is not UTF-8.
        """
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
        reports = watch(
            printable(str(self.root)),  # watchfiles takes and gives UTF-8, whatever Python has as its encoding
            stop_event=self._stop,
            debounce=DEBOUNCE_MS,
            step=QUIET_MS,
            rust_timeout=RESCAN_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            watch_filter=None,  # its default leaves out paths with e.g. site-packages in them, also above the root
        )
        for report in reports:
            self._changed(self._names(path for _, path in report) if report else None)

    def _names(self, paths: Iterable[str]) -> set[str]:
        inside = (Path(native(path)) for path in paths)
        return {path.relative_to(self.root).parts[0] for path in inside if self.root in path.parents}
