"""A process beside a server that this process has started: it is started again where it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fmplex_backend.control_key import VARIABLE
from fmplex_controller.server import launcher
from fmplex_controller.server.ends import Ends
from fmplex_controller.server.process import Server

STOP_S = 5.0


class BesideProcess(ABC):
    """Runs until it is stopped; started again where it ends by itself. The kernel ends it with us.

    Args:
        options: of its own command line.
        variables: more for its environment.
    """

    name: str  # for messages
    without: str  # what is then, where it is given up

    def __init__(
        self,
        server: Server,
        clock: Callable[[], float] = time.monotonic,
        options: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._server, self._clock = server, clock
        self._options, self._variables = tuple(options), variables
        self._process: subprocess.Popen[bytes] | None = None
        self._ends = Ends()
        self._start_at: float | None = None  # None: it runs, or is given up

    @abstractmethod
    def command(self) -> list[str]:
        """Python's arguments."""

    @abstractmethod
    def ended(self, how: str, what_follows: str) -> None:
        """It has ended unasked, or could not be started again, which is said on stderr."""

    def start(self) -> None:
        """Start it; the server's key reaches it as a variable, which other users cannot read."""
        command = [sys.executable, *self.command()]
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
                self._start_again()
        elif self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self._has_ended(f"with status {code}", f"ended with status {code}")

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError as error:  # of this machine, which may have no memory or number left for a process
            self._has_ended(f"it cannot be started: {error}", f"cannot be started: {error}")

    def _has_ended(self, how: str, said: str) -> None:
        pause = self._ends.add(self._clock())
        again = f"given up; {self.without}" if pause is None else "started again"
        print(f"fmplex: {self.name} {said}: {again}", file=sys.stderr, flush=True)
        self.ended(how, again)
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
