"""A virtual foundation model: the queue, the extensions and the account of one task on a backbone."""

from __future__ import annotations

from collections import deque
from typing import Any

from fmplex_backend.errors import FmplexError
from fmplex_backend.types import Request


class Counts:
    """Plain numbers, each written by one thread only; the metrics thread reads them."""

    __slots__ = ("compute_s", "failures", "items", "misses", "queue_s", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.items = 0
        self.queue_s = 0.0
        self.compute_s = 0.0
        self.misses = 0
        self.failures: dict[str, int] = {}  # by reason

    def fail(self, reason: str) -> None:
        """Count a failure."""
        self.failures[reason] = self.failures.get(reason, 0) + 1


class Vfm:
    """What the backbone keeps per task. The engine thread owns all of it but `intake` and `replied`.

    `start` is the start tag of the head request while there is one, else the finish tag of the last one taken
    (virtual seconds).
    """

    def __init__(
        self, vfm: int, name: str, *, weight: float = 1.0, slo: float | None = None, max_queue: int = 1024
    ) -> None:
        self.id = vfm
        self.name = name
        self.weight = weight
        self.slo = slo  # seconds
        self.max_queue = max_queue
        self.queue: deque[Request] = deque()
        self.start = 0.0
        self.entry = 0  # the id of its valid entry in the scheduler's heap; 0: none, nothing is queued
        self.adapted = False  # an adapter of its own takes part in a pass
        self.service = 0.0  # seconds of backbone time received
        self.extensions: Any = None
        self.refused: FmplexError | None = None  # its extensions could not be attached
        self.accepted = 0  # requests let in (intake thread)
        self.taken = 0  # requests that left the queue (engine thread)
        self.engine = Counts()
        self.intake = Counts()
        self.replied = Counts()

    @property
    def depth(self) -> int:
        """Requests waiting, those on their way to the engine included. Any thread may ask."""
        return self.accepted - self.taken

    def __repr__(self) -> str:
        return f"Vfm({self.id}, {self.name!r}, weight={self.weight:g}, queued={len(self.queue)})"
