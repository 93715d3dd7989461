"""Real servers for tests, each on ports of its own, its log in a file."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tritonclient.grpc as grpcclient
from asking import GrpcClient

from fmplex_controller.options import ServerOptions
from fmplex_controller.server import ModelState, Server, free_ports

READY_S = 180.0
SAMPLE = re.compile(r"^(?P<name>fmplex_\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$")
LIVE: list[Path] = []  # logs of the servers that run now, for the report of a test that fails


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is up."""

    server: Server
    repository: Path
    log: Path
    states: tuple[ModelState, ...]

    @property
    def grpc_url(self) -> str:
        """For tritonclient.grpc."""
        return self.server.grpc_url

    @property
    def http_url(self) -> str:
        """For tritonclient.http."""
        return self.server.http_url

    @property
    def refused(self) -> list[str]:
        """What did not load when it started, and why."""
        return [f"{state.name}: {state.reason}" for state in self.states if not state.ready]

    def client(self) -> GrpcClient:
        """A client of this server."""
        return GrpcClient(self.grpc_url)

    def load(self, task: str) -> None:
        """Model control over gRPC; raises what Triton says."""
        with grpcclient.InferenceServerClient(self.grpc_url) as client:
            client.load_model(task, client_timeout=60)

    def unload(self, task: str) -> None:
        """Model control over gRPC."""
        with grpcclient.InferenceServerClient(self.grpc_url) as client:
            client.unload_model(task, client_timeout=60)

    def has(self, task: str) -> bool:
        """Whether Triton serves it."""
        with grpcclient.InferenceServerClient(self.grpc_url) as client:
            return bool(client.is_model_ready(task, client_timeout=10))

    def stub(self, backbone: str = "minilm") -> psutil.Process:
        """The process that holds a backbone."""
        children = psutil.Process(self.server.pid).children(recursive=True)
        (stub,) = [process for process in children if f"/{backbone}/" in " ".join(process.cmdline())]
        return stub

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """Samples of /metrics by (family, task, reason), of whatever backbone; "" where there is no such label."""
        url = f"http://127.0.0.1:{self.server.options.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        found: dict[tuple[str, str, str], float] = {}
        for sample in filter(None, map(SAMPLE.match, lines)):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
            key = (sample["name"], labels.get("task", ""), labels.get("reason", ""))
            assert key not in found, f"{key} is on /metrics twice"
            found[key] = float(sample["value"])
        return found

    def metric(self, family: str, task: str = "", reason: str = "") -> float:
        """One sample, 0 where there is none."""
        return self.metrics().get((f"fmplex_{family}", task, reason), 0.0)


@contextlib.contextmanager
def serving(
    repository: Path,
    folder: Path,
    *,
    control: Literal["explicit", "poll"] = "explicit",
    variables: dict[str, str] | None = None,
    extra: tuple[str, ...] = (),
) -> Iterator[Serving]:
    """Start a server, wait until everything is loaded or refused, stop it at the end."""
    http, grpc, metrics = free_ports(3)
    log = folder / "server.log"
    options = ServerOptions(
        repository=repository,
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        control=control,
        extra=extra,
        variables=variables or {},
    )
    LIVE.append(log)
    try:
        with log.open("w") as out, Server(options, log=out) as server:
            yield Serving(server, repository, log, server.wait_ready(timeout=READY_S))
    finally:
        LIVE.remove(log)


def eventually(true: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
