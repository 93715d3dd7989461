"""The moment by which a whole call must be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is a reading of `clock` in seconds; None where the call may take as long as it likes."""

    at: float | None
    clock: Callable[[], float]

    @classmethod
    def after(cls, timeout: float | None, clock: Callable[[], float]) -> Deadline:
        """`timeout` seconds from now."""
        return cls(None if timeout is None else clock() + timeout, clock)

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least 0; None without a limit."""
        return None if self.at is None else max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining == 0.0
