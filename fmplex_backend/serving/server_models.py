"""What a backbone asks the server about other models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fmplex_backend.errors import ServerProblem
from fmplex_backend.printable import printable
from fmplex_backend.repository.tasks import Stamp, stamp
from fmplex_backend.server_variables import MODEL_CONTROL
from fmplex_backend.serving.loaded_entries import LoadedEntries
from fmplex_backend.serving.readiness import Readiness

RELOAD_S = 60.0  # within which a backbone whose directory has changed is reloaded, if somebody does that


class ServerModels:
    """Which models the server has loaded.

    In 2.51 both calls of pb_utils hold the interpreter's lock until they are answered, and where the answer is an error
    they read shared memory that the server may have freed, which can end the server. So nothing is asked that is likely
    to be refused.

    Args:
        directory: of the backbone that asks.
        is_ready: `pb_utils.is_model_ready`, None where the server has none.
        unload: `pb_utils.unload_model`.
        readiness: asks the server over HTTP, where its address is known: then `is_ready` is not asked.
        entries: by which the server has loaded its models.
    """

    def __init__(
        self,
        directory: Path,
        *,
        is_ready: Callable[[str], bool] | None,
        unload: Callable[[str], object] | None,
        readiness: Readiness,
        entries: LoadedEntries,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory, self.clock = directory, clock
        self.readiness, self.entries = readiness, entries
        self._is_ready, self._unload = is_ready, unload
        self.is_serving = False  # set by the first request: before the server is ready it answers with errors
        self._stamps_seen = self._stamps()
        self._may_unload_at = clock()

    def is_loaded(self, name: str) -> bool | None:
        """Whether a model is ready; None before the first request, False where the server cannot say."""
        if self.is_serving and (is_ready := self.readiness.is_ready(printable(name))) is not None:
            return is_ready
        if self._is_ready is None:
            return False
        if not self.is_serving:
            return None
        try:
            return bool(self._is_ready(printable(name)))
        except Exception:  # whatever the stub raises
            return True

    def loaded_tags(self, name: str) -> list[int] | None:
        """The tags with which requests of a loaded model come to this backbone; None where that is not known."""
        return self.entries.tags(name) if self.is_serving else None

    def unload(self, name: str) -> None:
        """Unload a model; raises ServerProblem where the server does not, or where it could be long about it.

        The server waits with it for the end of a reload of the backbone, which the backbone's tasks are part of, and
        the reload may wait for this process. A backbone is reloaded when its directory has changed, so nothing is
        unloaded for a time after that.
        """
        if self._unload is None or os.environ.get(MODEL_CONTROL) != "explicit":
            raise ServerProblem(f"the server's model control is not known to be explicit ({MODEL_CONTROL})")
        if (stamps := self._stamps()) != self._stamps_seen:
            self._stamps_seen, self._may_unload_at = stamps, self.clock() + RELOAD_S
        if not self.is_serving or self.clock() < self._may_unload_at:
            raise ServerProblem(f"the backbone may be about to be loaded again; the next try is within {RELOAD_S:g} s")
        try:
            self._unload(printable(name))
        except Exception as error:
            self._may_unload_at = self.clock() + RELOAD_S
            raise ServerProblem(str(error)) from None

    def close_old(self) -> None:
        """Close connections to the server, which waits for them when it is told to end."""
        self.readiness.close_old()

    def close(self) -> None:
        """Close the connections to the server."""
        self.readiness.close()
        self.entries.close()

    def _stamps(self) -> list[Stamp]:
        """Of the backbone's directory and what is in it."""
        with suppress(OSError):
            return [stamp(path) for path in (self.directory, *sorted(self.directory.rglob("*")))]
        return []
