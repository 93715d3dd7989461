"""Runs arms in turn, and compares them round by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypedDict, TypeVar

Result = TypeVar("Result")


class Spread(TypedDict):
    """The median of the rounds, and the lowest and the highest of them."""

    median: float
    low: float
    high: float


class Pace(NamedTuple):
    """How long an experiment takes: rounds, and the seconds of a round's measurement window and warm-up."""

    rounds: int
    seconds: float
    warmup: float


def pace(*, quick: bool) -> Pace:
    """The pace of most experiments: all of them must fit into 45 minutes, or 10 where `quick`."""
    return Pace(2, 1.2, 0.4) if quick else Pace(5, 1.4, 0.5)


def interleave(arms: Mapping[str, Callable[[int], Result]], rounds: int) -> dict[str, list[Result]]:
    """A B C A B C ...: each arm once a round, called with the round's number."""
    seen: dict[str, list[Result]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, measure in arms.items():
            seen[name].append(measure(number))
    return seen


def spread(values: Sequence[float]) -> Spread:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The spread of the ratios of each round."""
    return spread([a / b if b else math.inf for a, b in zip(above, below, strict=True)])


def text(value: Spread, form: str = ".3f") -> str:
    """`0.981 (0.975 to 0.990)`."""
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def against(value: float, target: float, *, at_most: bool = False) -> str:
    """`target 0.97, met` or `target 0.97, MISSED`."""
    met = value <= target if at_most else value >= target
    return f"target {'at most' if at_most else 'at least'} {target:g}, {'met' if met else 'MISSED'}"
