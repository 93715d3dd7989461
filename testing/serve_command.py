"""`fmplex serve` as users start it: Triton, and beside it the controller, each started again when it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmplex_controller.server.process import free_ports
from fmplex_controller.sidecar.process import MODULE
from testing.servers import LIVE, READY_S, stubs_below

STOP_S = 60.0
TAIL = 3000  # characters of a log that an error shows


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """A running `fmplex serve`; the addresses are HOST:PORT."""

    process: subprocess.Popen[str]
    http_url: str
    grpc_url: str
    log: Path

    @property
    def tritonserver(self) -> psutil.Process | None:
        """None while it is started again."""
        return self._child(lambda words: Path(words[0]).name == "tritonserver")

    @property
    def controller(self) -> psutil.Process | None:
        """None while it is started again, and where the command runs none."""
        return self._child(lambda words: MODULE in words)

    def stub(self, backbone: str) -> psutil.Process | None:
        """The process that holds a backbone; None where there is none."""
        return stubs_below(psutil.Process(self.process.pid)).get(backbone)

    def log_tail(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-TAIL:]

    def _child(self, is_it: Callable[[list[str]], bool]) -> psutil.Process | None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                words = process.cmdline()  # empty of one that has ended and waits to be reaped
                if words and is_it(words):
                    return process
        return None


@contextlib.contextmanager
def serve_command(
    repository: Path, folder: Path, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[ServeCommand]:
    """Start it on ports of its own, wait until it says that it is ready, and end it with SIGTERM after the block.

    Args:
        folder: where server.log goes.
        options: of its command line.
        variables: added to its environment.
    """
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    line = [sys.executable, "-m", "fmplex", "serve", str(repository), *ports, *options]
    environment = {**os.environ, **(variables or {})}
    log = folder / "server.log"
    LIVE.append(log)
    try:
        with (
            log.open("w") as err,
            subprocess.Popen(line, stdout=subprocess.PIPE, stderr=err, text=True, env=environment) as process,
        ):
            try:
                command = ServeCommand(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
                if _first_line(process) != "ready\n":
                    raise RuntimeError(f"fmplex serve did not become ready. Its log ends with:\n{command.log_tail()}")
                yield command
            finally:
                _end(process)
    finally:
        LIVE.remove(log)


def _first_line(process: subprocess.Popen[str]) -> str:
    """Of its output; "" where it has ended, or has said nothing within READY_S and is killed for that."""
    assert process.stdout
    killer = threading.Timer(READY_S, process.kill)
    killer.start()
    try:
        return process.stdout.readline()
    finally:
        killer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()  # nothing where it has ended
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
