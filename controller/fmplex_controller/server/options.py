"""A server's options: its repository and where it listens; and the command line of tritonserver they make."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fmplex_backend.control_key import HTTP_HEADER
from fmplex_backend.errors import SetupProblem
from fmplex_backend.server_variables import ALLOW_LINKS, GRPC_ADDRESS, HTTP_ADDRESS, MODEL_CONTROL
from fmplex_controller.server.addresses import reachable
from fmplex_controller.server.installation import Installation
from fmplex_controller.server.launcher import KEY

# Whoever may call these can run code as the server (a load brings its own files), or choose where it writes; inference,
# metadata, health and statistics stay open.
CONTROL_APIS = ("model-repository", "logging", "trace")
# Whoever may register shared memory can register, and write into, that of the backbones' processes.
SHARED_MEMORY_API = "shared-memory"
DEFAULT_EXIT_TIMEOUT_S = 30.0  # Triton's

_EXIT_TIMEOUT = re.compile(r"exit-timeout-secs[= ](\d+)\s*")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the server serves, where it listens and to whom; `extra` goes to tritonserver as it is.

    Links in a task's version directory may lead into the directories `allow_links`, and nowhere else out of it.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    control: Literal["explicit", "poll"] = "explicit"
    control_key: str = field(default="", repr=False)  # of model control; "": the server makes one when it starts
    open: bool = False  # no key at all: everyone who reaches the ports controls the server
    shared_memory: bool = False  # clients may register shared memory without the key
    allow_links: tuple[Path, ...] = ()
    extra: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)  # more for the environment of the server

    def __post_init__(self) -> None:
        """Raise SetupProblem for two services on one port."""
        services: dict[int, str] = {}
        for service, port in self.ports.items():
            if port in services:
                raise SetupProblem(
                    f"{services[port]} and {service} cannot both listen on port {port}. Choose another with "
                    f"--{service}-port"
                )
            services[port] = service

    @property
    def ports(self) -> dict[str, int]:
        """The ports the server opens, by service."""
        every = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        return {name: port for name, port in every.items() if not self._turned_off(name)}

    @property
    def exit_timeout(self) -> float:
        """Seconds that Triton gives itself, once it is told to end, to answer what is in flight."""
        given = [value for value in map(_EXIT_TIMEOUT.fullmatch, " ".join(self.extra).split("--")) if value]
        return float(given[-1][1]) if given else DEFAULT_EXIT_TIMEOUT_S

    @property
    def environment(self) -> dict[str, str]:
        """What is put over the environment of the server."""
        roots = os.pathsep.join(str(root.resolve()) for root in self.allow_links)
        urls = {"grpc": (GRPC_ADDRESS, self.grpc_url), "http": (HTTP_ADDRESS, self.http_url)}
        addresses = dict(urls[service] for service in self.ports if service in urls)
        return {MODEL_CONTROL: self.control, **addresses, **self.variables, **({ALLOW_LINKS: roots} if roots else {})}

    @property
    def http_url(self) -> str:
        """HOST:PORT, for HTTP clients on this machine."""
        return f"{reachable(self.host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """HOST:PORT, for gRPC clients on this machine."""
        return f"{reachable(self.host)}:{self.grpc_port}"

    def _turned_off(self, service: str) -> bool:
        return any(f"--allow-{service}={no}" in self.extra for no in ("false", "False", "0"))


def command(
    installation: Installation,
    backends: Path,
    options: ServerOptions,
    shm_prefix: str = "fmplex",
    load: Sequence[str] = ("*",),
) -> list[str]:
    """The command line of tritonserver, with launcher.KEY in the place of the control key.

    Args:
        shm_prefix: begins the names of the shared memory of its stubs.
        load: the models that an explicit server loads at its start.
    """
    control = {
        "explicit": ["--model-control-mode=explicit", *(f"--load-model={name}" for name in load)],
        "poll": ["--model-control-mode=poll", "--repository-poll-secs=1"],
    }
    line = [
        str(installation.binary),
        f"--model-repository={options.repository.resolve()}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *control[options.control],
        # One task that cannot be served must not stop the server, nor take the others out of a load balancer.
        "--exit-on-error=false",
        "--strict-readiness=false",
        *(f"--{name}-address={options.host}" for name in ("http", "grpc", "metrics")),
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
    ]
    if not options.open:
        closed = CONTROL_APIS if options.shared_memory else (*CONTROL_APIS, SHARED_MEMORY_API)
        restricted = f"{','.join(closed)}:{HTTP_HEADER}={KEY}"
        line += [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]
    return [*line, *options.extra]
