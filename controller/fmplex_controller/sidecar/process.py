"""The controller as a process beside a server that this process has started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fmplex_backend.control_key import VARIABLE
from fmplex_controller.records.journal import Journal
from fmplex_controller.server import launcher
from fmplex_controller.server.ends import Ends
from fmplex_controller.server.process import Server

MODULE = "fmplex_controller.sidecar"
STOP_S = 5.0


class SidecarProcess:
    """Controls a server until it is stopped; started again where it ends by itself. The kernel ends it with us.

    Args:
        options: of the controller's own command line.
        variables: more for its environment.
    """

    def __init__(
        self,
        server: Server,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        options: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._server, self._clock = server, clock
        self.journal = journal or Journal()
        self._options, self._variables = tuple(options), variables
        self._process: subprocess.Popen[bytes] | None = None
        self._ends = Ends()
        self._start_at: float | None = None  # None: it runs, or is given up

    def start(self) -> None:
        """Start it; the key reaches it as a variable, which other users cannot read."""
        repository = str(self._server.options.repository.resolve())
        command = [sys.executable, "-m", MODULE, *self._options, repository, self._server.grpc_url]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *command],
            env={**os.environ, **self._variables, VARIABLE: self._server.control_key.value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C reaches us, who stop it
        )
        self._start_at = None

    def keep(self) -> None:
        """Start it again where it has ended, after a pause that grows; to be called again and again."""
        if self._start_at is not None:
            if self._clock() >= self._start_at:
                self.start()
        elif self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            pause = self._ends.add(self._clock())
            again = "given up; nothing follows the repository any more" if pause is None else "started again"
            print(f"fmplex: the controller ended with status {code}: {again}", file=sys.stderr, flush=True)
            self.journal.tell("controller-ended", "", f"with status {code}", again)
            self._start_at = None if pause is None else self._clock() + pause

    def stop(self) -> None:
        """End it; nothing where it has ended."""
        self._start_at = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
