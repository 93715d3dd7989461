"""`fmplex serve` as users start it: Triton, and beside it the controller, each started again when it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmplex_controller.server.process import free_ports
from fmplex_controller.sidecar.process import MODULE
from testing.servers import LIVE, stubs_below

STOP_S = 60.0
TAIL = 3000  # characters of a log that an error shows


@dataclass(frozen=True, slots=True)
class Foreground:
    """A running `fmplex serve`."""

    process: psutil.Process
    grpc_url: str

    @property
    def tritonserver(self) -> psutil.Process | None:
        """None while it is started again."""
        return self._child(lambda words: Path(words[0]).name == "tritonserver")

    @property
    def controller(self) -> psutil.Process | None:
        """None while it is started again."""
        return self._child(lambda words: MODULE in words)

    def stub(self, backbone: str) -> psutil.Process | None:
        """The process that holds a backbone; None where there is none."""
        return stubs_below(self.process).get(backbone)

    def _child(self, is_it: Callable[[list[str]], bool]) -> psutil.Process | None:
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                words = process.cmdline()  # empty of one that has ended and waits to be reaped
                if words and is_it(words):
                    return process
        return None


@contextlib.contextmanager
def foreground(repository: Path, *options: str) -> Iterator[Foreground]:
    """For as long as the block lasts; an error in it shows the end of the log."""
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "server.log")
        line = [sys.executable, "-m", "fmplex", "serve", str(repository), *ports, "--no-api", *options]
        line += ["--records", str(Path(folder, "records"))]
        LIVE.append(log)
        try:
            with log.open("w") as out, subprocess.Popen(line, stdout=subprocess.PIPE, stderr=out, text=True) as process:
                try:
                    assert process.stdout
                    if process.stdout.readline() != "ready\n":
                        raise RuntimeError("fmplex serve did not become ready")
                    yield Foreground(psutil.Process(process.pid), f"127.0.0.1:{grpc}")
                except Exception as error:
                    raise RuntimeError(f"{error}. Its log ends with:\n{log.read_text()[-TAIL:]}") from error
                finally:
                    process.terminate()
                    process.wait(STOP_S)
        finally:
            LIVE.remove(log)
