"""A server for a measurement: everything on it is ready, its processes are pinned to cores, their memory is read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from testing import servers
from testing.servers import Serving


@contextlib.contextmanager
def serving(repository: Path, **variables: str) -> Iterator[Serving]:
    """A server on a repository; raises where a model is not ready. `variables` go into its environment."""
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.serving(repository, Path(folder), variables=variables) as server,
    ):
        if server.refused:
            raise RuntimeError(f"not served: {server.refused}")
        yield server


def pin(process: psutil.Process, *cores: int) -> None:
    """Pin all threads of a process to some cores; threads that it starts later inherit that."""
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, cores)


def pin_apart(server: Serving, backbone_core: int = 0, others_core: int = 1) -> None:
    """Pin the backbone to one core and tritonserver to the other, where the clients run too."""
    pin(server.process, others_core)
    pin(server.stub(), backbone_core)


def service_seconds(server: Serving) -> dict[str, float]:
    """Backbone seconds charged to each task so far, all as of one moment, up to a second ago."""
    samples = server.metrics().items()
    return {task: value for (family, task, _), value in samples if family == "fmplex_service_seconds_total"}


def received_seconds(server: Serving) -> dict[str, float]:
    """The same with the seconds of preparing their requests, which count for a task's share too."""
    found: dict[str, float] = {}
    for (family, task, _), value in server.metrics().items():
        if family in ("fmplex_service_seconds_total", "fmplex_preparation_seconds_total"):
            found[task] = found.get(task, 0.0) + value
    return found


def pss_mib(server: Serving) -> float:
    """Proportional set size of tritonserver and its models' processes, summed."""
    processes = (server.process, *server.stubs().values())
    return float(sum(process.memory_full_info().pss for process in processes)) / 2**20
