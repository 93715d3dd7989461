"""A real server for a measurement, with Triton on one core and the backbone's process on another."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from fmplex_controller.options import ServerOptions
from fmplex_controller.server import Server, free_ports


@contextlib.contextmanager
def serving(repository: Path, **variables: str) -> Iterator[Server]:
    """A server on a repository, ready; its log goes to a file that is shown if it fails."""
    http, grpc, metrics = free_ports(3)
    options = ServerOptions(
        repository=repository, http_port=http, grpc_port=grpc, metrics_port=metrics, variables=variables
    )
    with tempfile.TemporaryFile("w+") as log, Server(options, log=log) as server:
        states = server.wait_ready(timeout=180)
        broken = [f"{state.name}: {state.reason}" for state in states if not state.ready]
        if broken:
            raise RuntimeError(f"not served: {broken}")
        yield server


def backbone_process(server: Server) -> psutil.Process:
    """The stub that holds the backbone."""
    stubs = backend_processes(server)
    if len(stubs) != 1:
        raise RuntimeError(f"{len(stubs)} backend processes, one was expected")
    return stubs[0]


def model_process(server: Server, model: str) -> psutil.Process:
    """The stub of a model; it is started with the path of the model's code."""
    found = [p for p in backend_processes(server) if any(f"/{model}/" in part for part in p.cmdline())]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} processes for the model {model!r}, one was expected")
    return found[0]


def backend_processes(server: Server) -> list[psutil.Process]:
    """Every stub."""
    return [p for p in psutil.Process(server.pid).children(recursive=True) if "stub" in p.name()]


def pin(process: psutil.Process, *cores: int) -> None:
    """All threads of a process onto some cores; threads it starts later follow."""
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, cores)


def pin_apart(server: Server, backbone_core: int = 0, others_core: int = 1) -> None:
    """The backbone on one core; tritonserver on the other, where the clients go too."""
    pin(psutil.Process(server.pid), others_core)
    pin(backbone_process(server), backbone_core)


def service_seconds(server: Server) -> dict[str, float]:
    """Backbone seconds charged to each task so far, as /metrics says: up to a second old, of one moment for all."""
    url = f"http://{server.options.host}:{server.options.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
    found = re.findall(r'^fmplex_service_seconds_total\{.*?task="([^"]+)".*?\} (\S+)$', page, re.MULTILINE)
    return {task: float(value) for task, value in found}


def pss_mib(*processes: psutil.Process) -> float:
    """Proportional set size, summed."""
    return float(sum(process.memory_full_info().pss for process in processes)) / 2**20
