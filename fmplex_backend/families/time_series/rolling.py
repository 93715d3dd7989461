"""Forecasts beyond a head's own horizon: what it has forecast is put behind the series, which is run again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmplex_backend.families.payload import Payload
from fmplex_backend.families.time_series.preprocessing import Context
from fmplex_backend.families.time_series.series import Array
from fmplex_backend.types import Outcome, Running


@dataclass(slots=True)
class RollingPayload(Payload[Context]):
    """A request that runs as often as its horizon wants."""

    times: int = 1  # that it runs
    forecast: Callable[[list[Any], list[Context]], Array] | None = None  # rows' states -> [n, steps, channels]
    key: Callable[[Context], Hashable] | None = None
    tokens_of: Callable[[int], int] | None = None  # steps -> tokens of a row
    before: list[Array] = field(default_factory=list)

    def end_step(self) -> Outcome:
        outcome = Payload.end_step(self)
        if isinstance(outcome, Running) or len(self.before) + 1 == self.times:
            return outcome
        assert self.forecast is not None
        assert self.key is not None
        assert self.tokens_of is not None
        found = self.forecast(self.results, self.rows)
        self.before.append(found)
        channels = self.rows[0].values.shape[1]
        parts = found.swapaxes(1, 2).reshape(len(self.rows), channels, -1)  # of each row
        self.rows = [_behind(row, part.T, self.tokens_of) for row, part in zip(self.rows, parts, strict=True)]
        self.keys = [self.key(row) for row in self.rows]
        return Running(self.work, next_rows=self.row_work)


def _behind(row: Context, found: Array, tokens_of: Callable[[int], int]) -> Context:
    """The row that ends with the steps found, [steps, channels]."""
    context = len(row.values)
    values = np.ascontiguousarray(np.concatenate([row.values, found])[-context:])
    observed = np.concatenate([row.observed, np.ones_like(found, dtype=np.bool_)])[-context:]
    steps = min(context, row.steps + len(found))
    return Context(values, np.ascontiguousarray(observed), tokens_of(steps), steps)
