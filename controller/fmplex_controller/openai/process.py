"""OpenAI's API as a process beside a server that this process has started."""

from __future__ import annotations

import time

from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.server.addresses import listens, reachable
from fmplex_controller.server.beside import BesideProcess
from fmplex_controller.server.process import Server

MODULE = "fmplex_controller.openai"
START_S = 30.0
POLL_S = 0.05


class OpenAiProcess(BesideProcess):
    """Serves OpenAI's API until it is stopped."""

    name, without = "OpenAI's API", "nobody listens there any more"

    def __init__(self, server: Server, options: OpenAiOptions) -> None:
        super().__init__(server, options=options.arguments)
        self.api = options

    def command(self) -> list[str]:
        return ["-m", MODULE, *self._options, self._server.grpc_url]

    def ended(self, how: str, what_follows: str) -> None:
        """No journal tells of it."""

    def wait_ready(self) -> bool:
        """Wait until it listens; whether it does."""
        host, end = reachable(self.api.host), time.monotonic() + START_S
        while not listens(host, self.api.port):
            if time.monotonic() > end or (self._process is not None and self._process.poll() is not None):
                return False
            time.sleep(POLL_S)
        return True
