"""Every error FMplex raises on purpose.

    FmplexError
    |-- InvalidRequest         the request itself is wrong                          INVALID_ARG
    |-- QueueFull              a vFM's queue is at its bound                        UNAVAILABLE
    |-- ShuttingDown           the backbone or the task is being unloaded           UNAVAILABLE
    |-- TagContested           requests of another task may come with this tag      UNAVAILABLE
    |-- TimeLimit              a task's max_seconds are over                        UNAVAILABLE
    |-- GroupChanged           a group's entry is not the one the server loaded     UNAVAILABLE
    |-- Cancelled              the client went away                                 CANCELLED
    |-- ExecutionFailed        the pass or the decoder raised                       INTERNAL
    |   `-- NotFinite          the answer holds NaN or infinite numbers             INTERNAL
    |-- GroupFailed            no task of a group has answered: the first's code    INTERNAL
    |-- Refused                something on disk is wrong                           INTERNAL
    |   |-- TaskRefused        a task's directory cannot be served                  INTERNAL
    |   `-- BackboneRefused    a backbone's config or environment is wrong          INTERNAL
    |-- TaskProblem            a task, its data or its place is not as it must be   INVALID_ARG
    |   `-- RepositoryLocked   another process has held the repository's lock long  INVALID_ARG
    |-- ServerProblem          a server's answer to a client was an error           INTERNAL
    |   |-- Busy               the task's queue is full                             INTERNAL
    |   |-- ControlClosed      it wants its control key                           INTERNAL
    |   |-- Unreachable        no server answers, or it answers UNAVAILABLE         INTERNAL
    |   `-- DeadlineExceeded   no answer within the time given                      INTERNAL
    |-- SetupProblem           Triton cannot be started from this environment       INTERNAL
    |   `-- PortInUse          a port the server is to listen on is taken           INTERNAL
    |-- ServerExited           tritonserver ended before it was asked to            INTERNAL
    `-- NotReady               the server did not become ready in the time given    INTERNAL

The backbone's process answers with those down to BackboneRefused: `triton.py` turns their `code` into a Triton status.
The Task-API and the client raise TaskProblem, Refused and ServerProblem; the controller raises the last four.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

Again = Literal["never", "soon", "later"]


class FmplexError(Exception):
    """Base of all; `code` names Triton's status, `reason` is the metrics label."""

    code: str = "INTERNAL"
    reason: str = "internal"


# -- in the backbone's process


class InvalidRequest(FmplexError):
    """The request cannot be served as it was sent; sending it again does not help."""

    code = "INVALID_ARG"
    reason = "invalid"


class QueueFull(FmplexError):
    """The vFM holds `max_queue` requests already."""

    code = "UNAVAILABLE"
    reason = "queue_full"


class ShuttingDown(FmplexError):
    """The backbone or the task is being unloaded."""

    code = "UNAVAILABLE"
    reason = "shutting_down"


class TagContested(FmplexError):
    """Requests of two tasks may come with this tag: whose one is cannot be told, a guess could be wrong."""

    code = "UNAVAILABLE"
    reason = "contested"


class TimeLimit(FmplexError):
    """The time limit of the task was over before there was an answer; Triton says the same of its own time-outs."""

    code = "UNAVAILABLE"
    reason = "time_limit"


class GroupChanged(FmplexError):
    """A request comes by another entry of its group than the one on disk: whose answers it shows is not known."""

    code = "UNAVAILABLE"
    reason = "group_changed"


class Cancelled(FmplexError):
    """The client cancelled while the request was queued."""

    code = "CANCELLED"
    reason = "cancelled"


class ExecutionFailed(FmplexError):
    """The pass over the backbone or the task's decoder raised; the cause is in the message."""

    reason = "execution"


class NotFinite(ExecutionFailed):
    """The answer holds NaN or infinite numbers: it would be a wrong one."""

    reason = "not_finite"


class GroupFailed(FmplexError):
    """No task of a group has answered: the status is that of the first one's error."""

    reason = "group_failed"

    def __init__(self, message: str, code: str = "INTERNAL", reason: str = "group_failed") -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


LONGEST = 2_000  # characters of a message's part: it may quote a file, and is the answer to every request


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"


class Refused(FmplexError):
    """Something on disk is wrong: names the file, the field in it, the problem and the remedy."""

    reason = "refused"

    def __init__(self, file: Path | str, field: str, problem: str, remedy: str) -> None:
        self.file, self.field, self.problem, self.remedy = str(file), _short(field), _short(problem), remedy
        super().__init__(f"{file}: {self.field}: {self.problem}. {remedy}")

    def without_traceback(self) -> Self:
        """The same error, to be kept: one that was raised holds the frames it went through, and what they hold, such
        as a file's bytes.
        """
        return type(self)(self.file, self.field, self.problem, self.remedy)


class TaskRefused(Refused):
    """A task is not served at all: an answer without its adapter or head would be a wrong answer."""


class BackboneRefused(Refused):
    """A backbone does not start."""


# -- in the Task-API and the client


class TaskProblem(FmplexError):
    """What was asked for cannot be done with this task or this data; the message says what to do."""

    code = "INVALID_ARG"
    reason = "task"


class RepositoryLocked(TaskProblem):
    """Another process is writing to the repository, and has been for long: nothing is wrong with the task."""


class ServerProblem(FmplexError):
    """A request failed at the server.

    Args:
        status: gRPC's or HTTP's, e.g. INVALID_ARGUMENT or 400.
        again: whether it may succeed when it is sent again: never, if so then soon (the server is not up yet), or
            later (it is busy, or the connection broke). None: what the class says.
    """

    reason = "server"
    again: Again = "never"

    def __init__(self, message: str, status: str = "", again: Again | None = None) -> None:
        super().__init__(message)
        self.status, self.again = status, again or type(self).again


class Busy(ServerProblem):
    """The task's queue was full whenever the request was sent."""

    again = "later"


class ControlClosed(ServerProblem):
    """The server lets nobody list, load or unload models without its control key, and was sent none, or another."""


class Unreachable(ServerProblem):
    """No server answers, or it answers UNAVAILABLE, after all retries."""

    again = "later"


class DeadlineExceeded(ServerProblem):
    """The time given is over."""


# -- around the server's process


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
