"""Real servers, each on ports of its own, its log in a file."""

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

from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import ModelState, Server, free_ports
from testing.clients import GrpcClient

READY_S = 180.0
SAMPLE = re.compile(r"^(?P<name>fmplex_\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$")
LIVE: list[Path] = []  # logs of the running servers, for the report of a failed test


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server; `states` are those of its models when it was ready."""

    server: Server
    repository: Path
    log: Path
    states: tuple[ModelState, ...]

    @property
    def grpc_url(self) -> str:
        """Of the endpoint for tritonclient.grpc."""
        return self.server.grpc_url

    @property
    def http_url(self) -> str:
        """Of the endpoint for tritonclient.http."""
        return self.server.http_url

    @property
    def process(self) -> psutil.Process:
        """tritonserver's."""
        return psutil.Process(self.server.pid)

    @property
    def refused(self) -> list[str]:
        """Models that did not load when the server started, and why."""
        return [f"{state.name}: {state.reason}" for state in self.states if not state.ready]

    def client(self) -> GrpcClient:
        return GrpcClient(self.grpc_url)

    def load(self, task: str) -> None:
        """Load a model; raises what Triton says."""
        with self.client() as client:
            client.load(task)

    def unload(self, task: str) -> None:
        """Unload a model; raises what Triton says."""
        with self.client() as client:
            client.unload(task)

    def has(self, task: str) -> bool:
        """Whether Triton has loaded the model."""
        with self.client() as client:
            return bool(client.raw.is_model_ready(task, client_timeout=10))

    def stubs(self) -> dict[str, psutil.Process]:
        """The process of each model that has one of its own, by the model's name."""
        return stubs_below(self.process)

    def stub(self, backbone: str = "minilm") -> psutil.Process:
        """The process that holds a backbone."""
        return self.stubs()[backbone]

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """Samples of /metrics by (family, task, reason); "" for a label that a sample does not have.

        A version that is tried counts as TASK/ROLE, and the outcome of a shadow's copies as the reason; so does a
        histogram's bucket.
        """
        url = f"http://127.0.0.1:{self.server.options.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        found: dict[tuple[str, str, str], float] = {}
        for sample in filter(None, map(SAMPLE.match, lines)):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
            task = "/".join(labels[label] for label in ("task", "role") if label in labels)
            key = (sample["name"], task, labels.get("reason") or labels.get("outcome") or labels.get("le", ""))
            assert key not in found, f"{key} is on /metrics twice"
            found[key] = float(sample["value"])
        return found

    def metric(self, family: str, task: str = "", reason: str = "") -> float:
        """One sample of /metrics; 0 where there is none."""
        return self.metrics().get((f"fmplex_{family}", task, reason), 0.0)


def stubs_below(ancestor: psutil.Process) -> dict[str, psutil.Process]:
    """The processes of models that descend from tritonserver's or another, by the model's name."""
    found: dict[str, psutil.Process] = {}
    for process in ancestor.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile, or waits to be reaped
            line = process.cmdline()  # empty of one that has ended and waits to be reaped
            if "stub" in process.name() and len(line) > 1:
                model = Path(line[1]).parents[1].name  # MODEL/VERSION/model.py
                assert model not in found, f"{model} has two processes"
                found[model] = process
    return found


@contextlib.contextmanager
def serving(
    repository: Path,
    folder: Path,
    *,
    control: Literal["explicit", "poll"] = "explicit",
    variables: dict[str, str] | None = None,
    extra: tuple[str, ...] = (),
) -> Iterator[Serving]:
    """Start a server, wait until every model is loaded or refused, stop it at the end.

    Args:
        folder: where server.log goes.
        control: Triton's model control mode.
        variables: added to the server's environment.
        extra: further arguments of tritonserver.
    """
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


def eventually(true: Callable[[], bool], what: str, seconds: float = 15.0, *, period: float = 0.02) -> None:
    """Poll every `period` seconds until `true()` holds; AssertionError with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(period)
