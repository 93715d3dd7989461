"""What can go wrong around the server process."""

from __future__ import annotations

from fmplex_backend.errors import FmplexError


class SetupProblem(FmplexError):
    """Triton cannot be started from this environment; the message names the remedy."""

    reason = "setup"


class PortInUse(SetupProblem):
    """A port the server is to listen on is taken."""


class ServerExited(FmplexError):
    """tritonserver ended before it was asked to."""

    reason = "server_exited"


class NotReady(FmplexError):
    """The server did not become ready in the time given."""

    reason = "not_ready"
