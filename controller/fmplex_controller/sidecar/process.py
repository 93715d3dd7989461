"""The controller as a process beside a server that this process has started."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fmplex_controller.records.journal import Journal
from fmplex_controller.server.beside import BesideProcess
from fmplex_controller.server.process import Server

MODULE = "fmplex_controller.sidecar"


class SidecarProcess(BesideProcess):
    """Controls a server until it is stopped; what becomes of it is told to the journal."""

    name, without = "the controller", "nothing follows the repository any more"

    def __init__(
        self,
        server: Server,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        options: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(server, clock, options, variables)
        self.journal = journal or Journal()

    def command(self) -> list[str]:
        return ["-m", MODULE, *self._options, str(self._server.options.repository.resolve()), self._server.grpc_url]

    def ended(self, how: str, what_follows: str) -> None:
        self.journal.tell("controller-ended", "", how, what_follows)
