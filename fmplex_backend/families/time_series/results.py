"""Typed results of time-series tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmplex_backend.decoders.results import Result
from fmplex_backend.families.time_series.series import Array

SHOWN = 4  # numbers of a channel


@dataclass(frozen=True, slots=True, eq=False)
class Forecast(Result):
    """The next steps of a series: [horizon, channels]."""

    values: Array
    truncated: bool = False

    def shown(self) -> str:
        return f"{len(self.values)} steps: {_channels(self.values)}"


@dataclass(frozen=True, slots=True, eq=False)
class Anomalies(Result):
    """How far the last steps of a series are from what was expected, [steps, channels].

    1 is the bound that few of the steps of usual series reach; steps above it are anomalies. A missing value has 0.
    """

    scores: Array
    truncated: bool = False

    @property
    def steps(self) -> list[int]:
        """The anomalous ones of the last steps, counted from the end of the series: -1 is the last."""
        return [int(place) - len(self.scores) for place in np.flatnonzero((self.scores > 1).any(axis=1))]

    def shown(self) -> str:
        worst = float(self.scores.max(initial=0.0))
        found = ", ".join(map(str, self.steps)) or "none"
        return f"anomalous of the last {len(self.scores)} steps: {found} (highest score {worst:.3g})"


@dataclass(frozen=True, slots=True, eq=False)
class Filled(Result):
    """The last steps of a series with its missing values filled in: [steps, channels]."""

    values: Array
    truncated: bool = False

    def shown(self) -> str:
        return f"{len(self.values)} steps, the last: {_channels(self.values[-SHOWN:])}"


def _channels(values: Array) -> str:
    """The first numbers of the first channels."""
    lines = [" ".join(f"{value:.4g}" for value in channel[:SHOWN]) for channel in values.T[:SHOWN]]
    more = " ..." if len(values) > SHOWN else ""
    return "; ".join(f"{line}{more}" for line in lines) + (" ..." if values.shape[1] > SHOWN else "")
