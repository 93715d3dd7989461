"""How long work takes on a backbone: T(pass) = a + b*tokens + d*tokens*longest + e*adapter groups, in s.

Fitted online by least squares with exponential forgetting, never negative: each pass adds to the normal
equations, and a few sweeps of projected coordinate descent from the last solution solve them. A pass counts
by its relative error, so that a short pass weighs as much as a long one. The error is relative to the longer of
the measured and the predicted seconds, so that outliers, stalled passes and ones that end at once, weigh little.

A machine that becomes slower becomes so for all shapes. So every pass first moves the speed, by which all that was
learned before is scaled, and only then adds to the fit, which remembers for long. What the shapes cost relative to each
other stays known that way through hundreds of passes of one shape, of which no fit could tell a from b.

A batch of mixed lengths takes several passes, and the engine some time of its own for each batch: moving averages.

Where a runtime reports the seconds that a pass was at work (the engine thread's CPU time), the fit is of those, and
elapsed over worked seconds is one factor for all passes: what delays a pass (replies being sent meanwhile, other
processes) does not depend on its shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fmplex_backend.types import PassShape, Work

FORGETTING = 0.998  # forgetting factor: the weight of a pass halves every 350 passes
SPEED_RATE = 0.1  # of the exponential moving average of the logarithm of the speed
SPEED_LIMIT = 0.16  # the most of a pass's logarithmic error that counts there: a pass changes the speed by at most 1.6%
DELAY_RATE = 0.03  # of the exponential moving average of elapsed over worked seconds
SWEEPS = 4
SEED_SWEEPS = 2000  # the seed has no former solution to start from
SCALE = (1.0, 1e3, 1e6, 1.0)  # of the features, so that all coefficients have the magnitude of a pass's seconds
MIN_SECONDS = 1e-9  # an estimate is never zero: measured seconds are shared in proportion to estimates
SHARERS_RATE = 0.1  # of the exponential moving average of requests per pass
BATCH_RATE = 0.05  # of the exponential moving averages of passes per batch, and of seconds outside them


class CostModel:
    """Estimates in seconds. `fixed`, `per_token`, `per_area` and `per_group` are a, b, d and e."""

    def __init__(self, fixed: float = 1e-3, per_token: float = 1e-5, per_area: float = 0.0) -> None:
        self._solution = [fixed * SCALE[0], per_token * SCALE[1], per_area * SCALE[2], 0.0]
        self._gram = [[0.0] * 4 for _ in range(4)]
        self._moment = [0.0] * 4
        self._sharers = 1.0  # requests per pass (exponential moving average): they share the fixed part
        self._delay = 1.0  # elapsed over worked seconds of a pass (exponential moving average)
        self._passes = 1.0  # per batch (exponential moving average)
        self._outside = 0.0  # seconds of a batch outside its passes (exponential moving average)
        self._publish()

    def batch(self, total: Work, adapter_groups: int) -> float:
        """Seconds a batch of this much work will take."""
        return self.once(adapter_groups) + self.rows(total) + MIN_SECONDS

    def once(self, adapter_groups: int) -> float:
        """Seconds of it that do not depend on how many rows there are."""
        return self._passes * self.fixed + self._outside + self.per_group * adapter_groups

    def rows(self, total: Work) -> float:
        """Seconds of it that its rows add."""
        return self.per_token * total.tokens + self.per_area * total.area

    def portion(self, work: Work) -> float:
        """Seconds that one request contributes to a pass with the average number of requests."""
        return self.fixed / self._sharers + self.per_token * work.tokens + self.per_area * work.area + MIN_SECONDS

    def predict(self, shape: PassShape) -> float:
        """Seconds a pass of this shape will take."""
        area = shape.tokens * shape.longest
        return self.fixed + self.per_token * shape.tokens + self.per_area * area + self.per_group * shape.adapter_groups

    def observe(self, shape: PassShape, sharers: int, elapsed: float, worked: float | None = None) -> None:
        """Fit to a pass of `sharers` requests: its seconds, and those at work on it where they are known."""
        worked = elapsed if worked is None else min(worked, elapsed)
        self._sharers += SHARERS_RATE * (sharers - self._sharers)
        if worked > 0:
            predicted = self.predict(shape) / self._delay
            predicted *= self._rescale(worked, predicted)
            self._add(shape, worked, max(worked, predicted))
            # clipped at twice the average, so that one stalled pass moves it little
            self._delay += DELAY_RATE * (min(elapsed / worked, 2 * self._delay) - self._delay)
        self._solve(SWEEPS)

    def observe_batch(self, passes: int, outside: float) -> None:
        """Learn what a batch takes beside its rows: its passes, and the seconds outside them."""
        self._passes += BATCH_RATE * (passes - self._passes)
        self._outside += BATCH_RATE * (outside - self._outside)

    def seed(self, profile: Iterable[tuple[PassShape, float]]) -> None:
        """Start from a short profile instead of the defaults."""
        for shape, elapsed in profile:
            self._add(shape, elapsed, elapsed)
        self._solve(SEED_SWEEPS)

    def _rescale(self, worked: float, predicted: float) -> float:
        """Move all that was learned towards the present speed; returns the factor."""
        if predicted <= 0:
            return 1.0
        error = math.log(max(worked / predicted, MIN_SECONDS))
        factor = math.exp(SPEED_RATE * max(-SPEED_LIMIT, min(SPEED_LIMIT, error)))
        # Seconds times a factor: features over seconds shrink, targets (seconds over seconds) stay.
        self._gram = [[value / factor**2 for value in row] for row in self._gram]
        self._moment = [value / factor for value in self._moment]
        self._solution = [value * factor for value in self._solution]
        return factor

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
                    a, b, d, e = solution
                    residual = self._moment[i] - (gram[0] * a + gram[1] * b + gram[2] * d + gram[3] * e)
                    solution[i] = max(0.0, solution[i] + residual / gram[i])
        self._publish()

    def _publish(self) -> None:
        self.fixed, self.per_token, self.per_area, self.per_group = (
            self._delay * value / scale for value, scale in zip(self._solution, SCALE, strict=True)
        )
