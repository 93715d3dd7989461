"""Starts tritonserver on a model repository, waits until it is ready, and stops it without losing a request.

with Server(ServerOptions(Path("model_repository"))) as server:
    server.wait_ready(timeout=120)
    ...  # server.http_url, server.grpc_url
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TextIO

import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from fmplex_backend.control_key import VARIABLE
from fmplex_backend.errors import NotReady, ServerExited, SetupProblem
from fmplex_backend.printable import printable
from fmplex_controller.server import launcher
from fmplex_controller.server.addresses import check_ports, listens, reachable
from fmplex_controller.server.installation import (
    Installation,
    check,
    compose_backends,
    environment,
    find_tritonserver,
    missing_libraries,
)
from fmplex_controller.server.key import ControlKey
from fmplex_controller.server.log import ServerLog, one_line
from fmplex_controller.server.options import ServerOptions, command
from fmplex_controller.server.unlisted import check_polled, left_out, models_in, names_to_load

POLL_S = 0.1
PORTS_S = 5.0  # until the kernel has closed the ports of a process that was killed
SHARED_MEMORY = Path("/dev/shm")
LOWEST_PORT = 10_000
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Ends that a client can bring about, and no option of Triton's prevents.
KNOWN_ENDS = {
    -signal.SIGFPE: " (Triton divides by zero where a request asks for the `classification` of an output of text, such "
    "as LABEL)"
}


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model of the repository, as the server sees it."""

    name: str
    version: str
    state: str  # READY, LOADING, UNLOADING, UNAVAILABLE or "" (never loaded)
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether it can be called."""
        return self.state == "READY"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; Triton cannot choose its own.

    They lie below those that the kernel gives to outgoing connections: one of these could take a port before Triton
    has opened it, which is after it has loaded its models.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(LOWEST_PORT, _lowest_ephemeral())
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def _lowest_ephemeral() -> int:
    try:
        return max(LOWEST_PORT + 1000, int(EPHEMERAL.read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return 32768  # Linux's default


class Server:
    """One tritonserver process, a child of ours in a session of its own.

    The kernel ends it when the thread that called `start` ends, so call it from one that outlives the server.
    """

    def __init__(
        self, options: ServerOptions, installation: Installation | None = None, log: TextIO | None = None
    ) -> None:
        self.options = options
        self.control_key = ControlKey(options)
        self.installation = installation
        self.stopping = False  # its end was asked for, and is not a failure
        self._out = log
        self._process: subprocess.Popen[bytes] | None = None
        self._log: ServerLog | None = None
        self._folder: TemporaryDirectory[str] | None = None
        self._left_out: dict[str, str] = {}  # directories that Triton is not to read, and why

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """For tritonclient.http."""
        return self.options.http_url

    @property
    def grpc_url(self) -> str:
        """For tritonclient.grpc."""
        return self.options.grpc_url

    @property
    def control_headers(self) -> dict[str, str]:
        """What gRPC calls of model control must carry."""
        return self.control_key.grpc_headers

    @property
    def started(self) -> bool:
        """Whether there is, or was, a process."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        return self._running().pid

    def start(self) -> None:
        """Start the process; raises SetupProblem where that cannot work."""
        if not self.options.repository.is_dir():
            raise SetupProblem(f"there is no model repository at {self.options.repository}. Name a directory of models")
        self.installation = self.installation or find_tritonserver()
        check(self.installation)
        check_ports(self.options.host, self.options.ports)
        self._check_repository()
        self.control_key.keep()
        self._folder = TemporaryDirectory(prefix="fmplex-")
        backends = compose_backends(self.installation, Path(self._folder.name) / "backends")
        load = names_to_load(self.options.repository, self._left_out)
        line = command(self.installation, backends, self.options, Path(self._folder.name).name, load)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *line],
            env=environment(self.installation) | self.options.environment | {VARIABLE: self.control_key.value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A terminal's Ctrl-C then reaches only us, and the server still drains.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._log = ServerLog(self._process.stdout, self._out, when_it_runs=lambda: self.control_key.hide(self.pid))

    def _check_repository(self) -> None:
        if self.options.control == "poll":
            check_polled(self.options.repository)
        self._left_out = left_out(self.options.repository)

    def wait_ready(self, timeout: float | None = None) -> tuple[ModelState, ...]:
        """Wait until every model is ready or refused; refused ones are reported on stderr.

        Triton opens its ports after the first load of everything, so open ports mean that it is over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for states in self._attempts(deadline):
            if all(self._settled(state) for state in states):
                self._report_refused(states)
                if not self.control_key.hide(self.pid):
                    self._report("every user of this machine sees the control key in the process list")
                return states
        raise NotReady(f"tritonserver is not ready after {timeout:g} s. Its last lines:\n{self._logged().tail()}")

    def models(self) -> tuple[ModelState, ...]:
        """Every model of the repository."""
        with grpcclient.InferenceServerClient(self.grpc_url) as client:
            try:
                index = client.get_model_repository_index(headers=self.control_headers, client_timeout=10)
            except InferenceServerException:
                return self._models_without_index(client)
        return tuple(ModelState(m.name, m.version, m.state, self._reason(m)) for m in index.models)

    def _models_without_index(self, client: grpcclient.InferenceServerClient) -> tuple[ModelState, ...]:
        """For a repository that Triton cannot list, as where a name is not UTF-8 or a link leads nowhere."""
        names = models_in(self.options.repository)
        ready = {name for name in names if client.is_model_ready(name, client_timeout=10)}
        return tuple(
            ModelState(name, "", "READY") if name in ready else ModelState(name, "", "", self._why(name))
            for name in names
        )

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end; its exit status."""
        return self._running().wait(timeout)

    def terminate(self) -> None:
        """Ask the server to answer what is in flight and end."""
        self.stopping = True
        self._running().terminate()

    def kill(self) -> None:
        """End the server and its stubs at once."""
        self.stopping = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running().pid, signal.SIGKILL)

    def stop(self, timeout: float = 60) -> None:
        """Let it drain, and kill it after `timeout` seconds; nothing where it has ended."""
        self.control_key.forget()
        if self._process is not None:
            self._end(timeout)
        self._clean_up()

    def restart(self) -> None:
        """Start it again once it has ended, on the same ports and with the same key; raises SetupProblem."""
        self._clean_up()
        deadline = time.monotonic() + PORTS_S
        while time.monotonic() < deadline and any(
            listens(self.options.host, port) for port in self.options.ports.values()
        ):
            time.sleep(POLL_S)
        self.start()
        if self.stopping:  # it was told so while there was no process
            self._running().terminate()

    def _clean_up(self) -> None:
        if self._folder is not None:
            # Stubs that were killed leave their regions, a megabyte and more each.
            for region in SHARED_MEMORY.glob(f"{Path(self._folder.name).name}*"):
                region.unlink(missing_ok=True)
            self._folder.cleanup()

    def _end(self, timeout: float) -> None:
        if self._running().poll() is None:
            self.terminate()
        try:
            clean = self.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            self._report(f"tritonserver does not end within {timeout:g} s: killed")
            clean = False
        if not clean:
            self.kill()  # and the stubs, which may outlive a server that crashed
            self.wait()
        self._logged().join(timeout=5)

    def _attempts(self, deadline: float | None) -> Iterator[tuple[ModelState, ...]]:
        """The repository index, again and again, from when the server answers."""
        while deadline is None or time.monotonic() < deadline:
            code = self._running().poll()
            if code is not None:
                raise self.exited(code)
            host = reachable(self.options.host)
            if all(listens(host, port) for port in self.options.ports.values()):
                with contextlib.suppress(InferenceServerException):
                    yield self.models()
            time.sleep(POLL_S)

    def exited(self, code: int) -> ServerExited:
        """The error for a server that ended with `code`."""
        # Stubs outlive a server that crashed: its log does not end before them, and they may hold its ports.
        self._kill()
        log = self._logged()
        log.join(timeout=5)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        how += KNOWN_ENDS.get(code, "")
        missing = missing_libraries(self.installation) if self.installation and code > 0 else []
        lines = "".join(f"\n  {line}" for line in missing)
        found = f"\nLibraries the loader does not find:{lines}" if missing else ""
        return ServerExited(f"tritonserver {how}.{found}\nIts last lines:\n{log.tail()}")

    def _settled(self, state: ModelState) -> bool:
        # In poll mode Triton loads a refused model again every second: its refusal is in the log already.
        return state.state not in ("LOADING", "UNLOADING") or bool(self._logged().error_of(state.name))

    def _reason(self, model: service_pb2.RepositoryIndexResponse.ModelIndex) -> str:
        """Why a model is not ready: some reasons reach the log only."""
        return "" if model.state == "READY" else model.reason or self._why(model.name)

    def _why(self, name: str) -> str:
        return self._left_out.get(name, "") or self._logged().error_of(name)

    def _report_refused(self, states: tuple[ModelState, ...]) -> None:
        served = {state.name for state in states if state.ready}
        reasons = self._left_out | {state.name: state.reason for state in states if state.name not in served}
        for name, reason in reasons.items():
            said = one_line(reason) or "tritonserver gives no reason; its log may"
            self._report(f"model '{name}' is not served: {said}")

    def _report(self, line: str) -> None:
        print(f"fmplex: {printable(line)}", file=self._out or sys.stderr, flush=True)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    def _logged(self) -> ServerLog:
        assert self._log is not None
        return self._log
