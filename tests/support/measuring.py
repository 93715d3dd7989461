"""Measurements on a machine that has other work too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TIMES = 3


class Disturbed(AssertionError):
    """A figure that the machine's other work may have made, or a measurement without what it presupposes."""


def undisturbed(measure: Callable[[], T]) -> T:
    """What `measure` returns, which is measured anew where it was disturbed: a fault shows every time."""
    for _ in range(TIMES - 1):
        try:
            return measure()
        except Disturbed:
            pass
    return measure()


def figure(holds: bool, what: object) -> None:
    """Raises Disturbed with `what` unless it holds."""
    if not holds:
        raise Disturbed(what)
