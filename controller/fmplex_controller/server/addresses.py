"""Where a server listens: ports that are free, and the host by which clients of this machine reach it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

from fmplex_backend.errors import PortInUse

LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]  # as a request names this host


def reachable(host: str) -> str:
    """Where a client of this machine finds a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def listens(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=1):
            return True
    except OSError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this host reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind_problem(host: str, port: int) -> OSError | None:
    """Why nothing can listen there; None where it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            return error
    return None


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Raise PortInUse for a port that is taken: who has it would answer our readiness probes in its own name.

    Args:
        ports: by service.
    """
    for service, port in ports.items():
        if problem := bind_problem(host, port):
            raise PortInUse(
                f"{service} cannot listen on {host}:{port}: {problem.strerror}. "
                f"Choose another with --{service}-port or --host"
            ) from problem
