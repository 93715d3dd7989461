"""What a server is told: which repository, where to listen, and the command line that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fmplex_controller.installation import Installation

CONTROL_HEADER = "fmplex-key"
# Whoever may call these can change what the server serves, or where it writes; inference stays open.
CONTROL_APIS = "model-repository,logging,trace"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the server serves and where it listens; `extra` goes to tritonserver as it is."""

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    control: Literal["explicit", "poll"] = "explicit"
    control_key: str = field(default="", repr=False)
    extra: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)  # put over the environment of the server

    @property
    def ports(self) -> dict[str, int]:
        """The ports the server opens, by service."""
        every = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        return {name: port for name, port in every.items() if not self._turned_off(name)}

    def _turned_off(self, service: str) -> bool:
        return any(f"--allow-{service}={no}" in self.extra for no in ("false", "False", "0"))


def command(
    installation: Installation, backends: Path, options: ServerOptions, shm_prefix: str = "fmplex"
) -> list[str]:
    """The command line of tritonserver; `shm_prefix` begins the names of the shared memory of its stubs."""
    control = {
        "explicit": ["--model-control-mode=explicit", "--load-model=*"],
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
    if options.control_key:
        restricted = f"{CONTROL_APIS}:{CONTROL_HEADER}={options.control_key}"
        line += [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]
    return [*line, *options.extra]
