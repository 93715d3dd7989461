"""Every error FMplex raises on purpose.

    FmplexError
    |-- InvalidRequest      the request itself is wrong                  INVALID_ARG
    |-- TaskRefused         a task's directory cannot be served          INTERNAL
    |-- BackboneRefused     a backbone's config or environment is wrong  INTERNAL (at load)
    |-- QueueFull           a vFM's queue is at its bound                UNAVAILABLE
    |-- ShuttingDown        the backbone is being unloaded               UNAVAILABLE
    |-- Cancelled           the client went away                         CANCELLED
    `-- ExecutionFailed     the pass or the decoder raised               INTERNAL

`triton.py` turns `code` into a Triton status, and nothing else does.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class FmplexError(Exception):
    """Base of all; `code` names Triton's status, `reason` is the metrics label."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "internal"


class InvalidRequest(FmplexError):
    """The request cannot be served as it was sent; sending it again does not help."""

    code = "INVALID_ARG"
    reason = "invalid"


class Refused(FmplexError):
    """Something on disk is wrong: names the file, the field in it, the problem and the remedy."""

    reason = "refused"

    def __init__(self, file: Path | str, field: str, problem: str, remedy: str) -> None:
        self.file, self.field, self.problem, self.remedy = str(file), field, problem, remedy
        super().__init__(f"{file}: {field}: {problem}. {remedy}")


class TaskRefused(Refused):
    """A task is not served at all: an answer without its adapter or head would be a wrong answer."""


class BackboneRefused(Refused):
    """A backbone does not start."""


class QueueFull(FmplexError):
    """The vFM holds `max_queue` requests already."""

    code = "UNAVAILABLE"
    reason = "queue_full"


class ShuttingDown(FmplexError):
    """The backbone or the task is being unloaded."""

    code = "UNAVAILABLE"
    reason = "shutting_down"


class Cancelled(FmplexError):
    """The client cancelled while the request was queued."""

    code = "CANCELLED"
    reason = "cancelled"


class ExecutionFailed(FmplexError):
    """The pass over the backbone or the task's decoder raised; the cause is in the message."""

    reason = "execution"
