"""Triton's server: found on this machine, started on a model repository, watched, and stopped."""

from __future__ import annotations

from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import ModelState, Server, free_ports

__all__ = ["ModelState", "Server", "ServerOptions", "free_ports"]
