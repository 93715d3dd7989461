"""A server's control key: given or made, kept for the clients of this user, hidden from the process list, forgotten."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fmplex_backend.control_key import GRPC_HEADER, HTTP_HEADER, VARIABLE, check_key, forget_key, keep_key
from fmplex_controller.server.arguments import hide
from fmplex_controller.server.options import ServerOptions


class ControlKey:
    """The options' key, else the environment's, which clients send too, else a random one; "" of an open server."""

    def __init__(self, options: ServerOptions) -> None:
        self._source = "control_key" if options.control_key else VARIABLE
        self._given = "" if options.open else options.control_key or os.environ.get(VARIABLE, "")
        self.value = "" if options.open else self._given or secrets.token_urlsafe(32)
        self._ports = [port for service, port in options.ports.items() if service != "metrics"]
        self.files: list[Path] = []

    @property
    def grpc_headers(self) -> dict[str, str]:
        """What gRPC calls of model control must carry."""
        return {GRPC_HEADER: self.value} if self.value else {}

    def keep(self) -> None:
        """Keep a key that was made; a given one is its giver's to keep. Raises SetupProblem.

        No file of an earlier server may stay: its key would be sent to this one.
        """
        if self._given:
            check_key(self._given, self._source)
        for port in self._ports:
            if self._given or not self.value:
                forget_key(port)
            else:
                self.files.append(keep_key(port, self.value))

    def forget(self) -> None:
        """Remove the files, unless a later server on these ports has put its own key there."""
        if self.files:
            for port in self._ports:
                forget_key(port, self.value)

    def hide(self, pid: int) -> bool:
        """Hide it in the arguments of the process, which has read them; whether that is done."""
        return not self.value or hide(pid, f"{HTTP_HEADER}=", self.value)
