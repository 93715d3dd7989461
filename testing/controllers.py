"""The controller as a process beside a running server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from fmplex_backend.control_key import VARIABLE
from fmplex_controller.sidecar.process import MODULE
from testing.servers import Serving


@contextlib.contextmanager
def controller(server: Serving, *options: str) -> Iterator[None]:
    """For as long as the block lasts; then it is killed with SIGKILL: it has no state to lose.

    Args:
        options: of its command line.
    """
    line = [sys.executable, "-m", MODULE, *options, str(server.repository.resolve()), server.grpc_url]
    environment = os.environ | {VARIABLE: server.server.control_key.value}
    with server.log.open("a") as log:
        process = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()
