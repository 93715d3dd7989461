"""What the Task-API and the client raise.

FmplexError
    |-- TaskProblem         a task, its data or its place is not as it must be
    |-- Refused             something on disk is wrong (fmplex_backend.errors)
    `-- ServerProblem       a server said no: `status` is its word for it
        |-- Unreachable     no server answers there, or it is not ready
        `-- DeadlineExceeded    no answer within the time given
"""

from __future__ import annotations

from fmplex_backend.errors import FmplexError, Refused, TaskRefused

__all__ = ["DeadlineExceeded", "FmplexError", "Refused", "ServerProblem", "TaskProblem", "TaskRefused", "Unreachable"]


class TaskProblem(FmplexError):
    """What was asked for cannot be done with this task or this data; the message says what to do."""

    code = "INVALID_ARG"
    reason = "invalid"


class ServerProblem(FmplexError):
    """A request failed at the server. `status` is gRPC's or HTTP's, e.g. INVALID_ARGUMENT or 400."""

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class Unreachable(ServerProblem):
    """No server answers, or it answers UNAVAILABLE, after all retries."""


class DeadlineExceeded(ServerProblem):
    """The time given is over."""
