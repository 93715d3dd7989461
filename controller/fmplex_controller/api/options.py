"""Where the controller's API listens, and to whom it answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from fmplex_backend.errors import PortInUse, SetupProblem
from fmplex_controller.server.addresses import bind_problem, is_loopback

DEFAULT_PORT = 8003
TOKEN = "FMPLEX_API_TOKEN"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """On a loopback address everyone of this host may read; elsewhere `token` is wanted for everything."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str = field(default="", repr=False)

    @staticmethod
    def of(host: str, port: int | None, token: str, say: Callable[[str], object]) -> ApiOptions | None:
        """What was asked for; None, and why is said, where nothing in particular was and it cannot be had.

        Raises SetupProblem where a port or an address that was asked for cannot be had.
        """
        options = ApiOptions(host, DEFAULT_PORT if port is None else port, token)
        try:
            options.check()
        except SetupProblem as problem:
            if port is not None or not options.is_local or token:
                raise
            say(f"the controller runs without its API: {problem}")
            return None
        return options

    @property
    def is_local(self) -> bool:
        """Whether only this host reaches it."""
        return is_loopback(self.host)

    def check(self) -> None:
        """Raise SetupProblem where the libraries or the token are missing, or the port is taken."""
        missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
        if missing:
            raise SetupProblem(
                f"the controller's API needs {', '.join(missing)}. Install fmplex[controller], or give --no-api"
            )
        if not self.is_local and not self.token:
            raise SetupProblem(
                f"the controller's API would be open to everyone who reaches {self.host}:{self.port}. Give a token "
                f"with --api-token-file or {TOKEN}, listen on 127.0.0.1, or give --no-api"
            )
        if problem := bind_problem(self.host, self.port):
            raise PortInUse(
                f"the controller's API cannot listen on {self.host}:{self.port}: {problem.strerror}. Choose "
                "another with --api-port, or give --no-api"
            ) from problem

    @property
    def arguments(self) -> list[str]:
        """For the command line of the controller's process."""
        return ["--api-host", self.host, "--api-port", str(self.port)]

    @property
    def variables(self) -> dict[str, str]:
        """For its environment, which other users cannot read as they can arguments."""
        return {TOKEN: self.token} if self.token else {}

    @staticmethod
    def given(host: str, port: int, variables: Mapping[str, str] = os.environ) -> ApiOptions:
        """As `arguments` and `variables` have them."""
        return ApiOptions(host, port, variables.get(TOKEN, ""))
