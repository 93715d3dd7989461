"""When requests are sent in an open loop: seconds from the start of the warm-up. Seeded: all arms get the same."""

from __future__ import annotations

import numpy as np


def constant(rate: float, seconds: float, *, offset: float = 0.5) -> list[float]:
    """Evenly spaced; `offset` is the first one's place in its interval, to keep several tasks apart."""
    return [(number + offset) / rate for number in range(int(rate * seconds))]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Independent clients."""
    if rate <= 0:
        return []
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 20))
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]


def bursty(rate: float, seconds: float, seed: int, *, on: float = 0.2, period: float = 1.0) -> list[float]:
    """On for `on` of every `period` seconds, Poisson while on; `rate` is the mean."""
    inside = poisson(rate * period / on, seconds * on / period, seed)
    return [time // on * period + time % on for time in inside]
