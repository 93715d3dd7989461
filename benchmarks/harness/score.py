"""Fairness of a division, from what clients counted rather than from the scheduler's own account."""

from __future__ import annotations

import math
from collections.abc import Sequence

REACHED = 0.95  # who gets this part of its offered load counts as having got all of it


def max_min(weights: Sequence[float], demands: Sequence[float], capacity: float) -> list[float]:
    """Weighted max-min shares: no task gets more than its demand; what it leaves goes to the others by weight."""
    shares = [0.0] * len(weights)
    open_ = set(range(len(weights)))
    left = capacity
    while open_:
        per_weight = left / sum(weights[i] for i in open_)
        full = {i for i in open_ if demands[i] <= per_weight * weights[i]}
        if not full:
            for i in open_:
                shares[i] = per_weight * weights[i]
            break
        for i in full:
            shares[i] = demands[i]
            left -= demands[i]
        open_ -= full
    return shares


def fairness(got: Sequence[float], weights: Sequence[float], demands: Sequence[float]) -> float:
    """1.0 where every task reaches its demand, else min(r)/max(r) with r = got / max-min share, at most 1.

    `got` and `demands` are in seconds of service per second; the sum of `got` is the capacity that is divided.
    """
    if all(have >= REACHED * want for have, want in zip(got, demands, strict=True)):
        return 1.0
    ideal = max_min(weights, demands, sum(got))
    reached = [min(1.0, have / share) for have, share in zip(got, ideal, strict=True) if share > 0]
    return min(reached) / max(reached)


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    total, squares = math.fsum(values), math.fsum(value * value for value in values)
    return total * total / (len(values) * squares) if squares else 0.0
