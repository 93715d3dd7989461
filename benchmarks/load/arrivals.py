"""When an open loop's requests are due: seconds from the start of the warm-up, the same for a seed."""

from __future__ import annotations

import numpy as np


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """A Poisson process of `rate` requests per second."""
    if rate <= 0:
        return []
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 20))
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]
