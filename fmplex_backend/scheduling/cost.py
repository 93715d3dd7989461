"""How long work takes on a backbone: T(pass) = a + b*tokens + d*tokens*longest + e*adapter groups, in s.

Fitted online by least squares with exponential forgetting, never negative: each pass adds to the normal
equations, and a few sweeps of projected coordinate descent from the last solution solve them. A pass counts
by its relative error, so that a short pass teaches as much as a long one. What the error is relative to is
the longer of measured and predicted: neither a stalled pass nor one that ended at once teaches much.

Where a runtime knows how long a pass was really at work, that is what is learned, and how much longer passes
take is one factor for all of them: what holds a pass up (answers that go out meanwhile, other processes) is not
its own cost.
"""

from __future__ import annotations

from collections.abc import Iterable

from fmplex_backend.types import PassShape, Work

FORGETTING = 0.97  # a pass counts half after 23 more
SWEEPS = 4
SEED_SWEEPS = 2000  # the seed starts from nothing
SCALE = (1.0, 1e3, 1e6, 1.0)  # of the features, so that all coefficients are near a pass's seconds
FLOOR = 1e-9  # seconds: an estimate is never zero, shares are taken in proportion to it


class CostModel:
    """Estimates in seconds. `fixed`, `per_token`, `per_area` and `per_group` are a, b, d and e."""

    def __init__(self, fixed: float = 1e-3, per_token: float = 1e-5, per_area: float = 0.0) -> None:
        self._solution = [fixed * SCALE[0], per_token * SCALE[1], per_area * SCALE[2], 0.0]
        self._gram = [[0.0] * 4 for _ in range(4)]
        self._moment = [0.0] * 4
        self._sharers = 1.0  # requests per pass, smoothed: who the fixed part is shared with
        self._delay = 1.0  # how many times as long as they are at work passes take, smoothed
        self._publish()

    def batch(self, total: Work, adapter_groups: int) -> float:
        """Seconds a batch of this much work will take."""
        return (
            self.fixed
            + self.per_token * total.tokens
            + self.per_area * total.area
            + self.per_group * adapter_groups
            + FLOOR
        )

    def portion(self, work: Work) -> float:
        """Seconds one request answers for in a batch of the usual size."""
        return self.fixed / self._sharers + self.per_token * work.tokens + self.per_area * work.area + FLOOR

    def predict(self, shape: PassShape) -> float:
        """Seconds a pass of this shape will take."""
        area = shape.tokens * shape.longest
        return self.fixed + self.per_token * shape.tokens + self.per_area * area + self.per_group * shape.adapter_groups

    def observe(self, shape: PassShape, sharers: int, elapsed: float, worked: float | None = None) -> None:
        """Learn from a measured pass that `sharers` requests took part in; `worked` is all of it by default."""
        worked = elapsed if worked is None else min(worked, elapsed)
        self._sharers += 0.1 * (sharers - self._sharers)
        self._add(shape, worked, max(worked, self.predict(shape) / self._delay))
        if worked > 0:  # of a pass that stalls no more than twice the usual counts
            self._delay += (1 - FORGETTING) * (min(elapsed / worked, 2 * self._delay) - self._delay)
        self._solve(SWEEPS)

    def seed(self, profile: Iterable[tuple[PassShape, float]]) -> None:
        """Start from a short profile instead of the defaults."""
        for shape, elapsed in profile:
            self._add(shape, elapsed, elapsed)
        self._solve(SEED_SWEEPS)

    def _add(self, shape: PassShape, elapsed: float, unit: float) -> None:
        if elapsed <= 0:
            return
        features = (1, shape.tokens, shape.tokens * shape.longest, shape.adapter_groups)
        row = [feature / (scale * unit) for feature, scale in zip(features, SCALE, strict=True)]
        target = elapsed / unit
        for i in range(4):
            gram = self._gram[i]
            for j in range(4):
                gram[j] = FORGETTING * gram[j] + row[i] * row[j]
            self._moment[i] = FORGETTING * self._moment[i] + row[i] * target

    def _solve(self, sweeps: int) -> None:
        solution = self._solution
        for _ in range(sweeps):
            for i, gram in enumerate(self._gram):
                if gram[i] > 0:
                    residual = self._moment[i] - sum(g * s for g, s in zip(gram, solution, strict=True))
                    solution[i] = max(0.0, solution[i] + residual / gram[i])
        self._publish()

    def _publish(self) -> None:
        self.fixed, self.per_token, self.per_area, self.per_group = (
            self._delay * value / scale for value, scale in zip(self._solution, SCALE, strict=True)
        )
