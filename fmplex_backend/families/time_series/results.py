"""Typed results of time-series tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmplex_backend.decoders.results import Result
from fmplex_backend.families.time_series.series import Array, TimeSeries, series_of

SHOWN = 4  # numbers of a channel
SEEN_TIMES = 6  # the steps that are drawn of a series, in those that were asked for


@dataclass(frozen=True, slots=True, eq=False)
class Forecast(Result):
    """The next steps of a series, [horizon, channels]; quantiles of them by their levels ("0.1"), if there are any."""

    forecast: Array
    truncated: bool = False
    quantiles: Mapping[str, Array] = field(default_factory=dict)

    def shown(self) -> str:
        return f"{len(self.forecast)} steps: {_channels(self.forecast)}"

    def draw(self, axes: Any, item: Any, after: Any = None) -> bool:
        """The last steps of the series, the forecast, and what came."""
        series, horizon = series_of(item), len(self.forecast)
        before = series.values[-SEEN_TIMES * horizon :]
        for place, name in enumerate(_names(series, self.forecast.shape[1])):
            known = before[:, place] if place < series.channels else before[:, 0]
            (line,) = axes.plot(range(-len(known), 0), known, label=name)
            dashed = {"color": line.get_color(), "linestyle": "--"}
            axes.plot(range(horizon), self.forecast[:, place], **dashed, label=f"{name}, forecast")
            if self.quantiles:
                band = np.stack(list(self.quantiles.values()))[..., place]
                axes.fill_between(
                    range(horizon), band.min(axis=0), band.max(axis=0), color=line.get_color(), alpha=0.15
                )
            if after is not None and place < after.channels:
                axes.plot(
                    range(after.steps),
                    after.values[:, place],
                    color=line.get_color(),
                    alpha=0.5,
                    label=f"{name}, what came",
                )
        axes.axvline(-0.5, color="grey", linewidth=0.5)
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Anomalies(Result):
    """How far the last steps of a series are from what was expected, [steps, channels].

    1 is the bound that few of the steps of usual series reach; steps above it are anomalies. A missing value has 0.
    """

    anomaly: Array
    truncated: bool = False

    @property
    def steps(self) -> list[int]:
        """The anomalous ones of the last steps, counted from the end of the series: -1 is the last."""
        return [int(place) - len(self.anomaly) for place in np.flatnonzero((self.anomaly > 1).any(axis=1))]

    def shown(self) -> str:
        worst = float(self.anomaly.max(initial=0.0))
        found = ", ".join(map(str, self.steps)) or "none"
        return f"anomalous of the last {len(self.anomaly)} steps: {found} (highest score {worst:.3g})"

    def draw(self, axes: Any, item: Any, after: Any = None) -> bool:
        """The end of the series, with its anomalous values marked."""
        series, compared = series_of(item), len(self.anomaly)
        known = series.values[-SEEN_TIMES * compared :]
        for place, name in enumerate(_names(series, series.channels)):
            axes.plot(range(-len(known), 0), known[:, place], label=name)
            found = np.flatnonzero(self.anomaly[:, place] > 1) - compared
            axes.plot(found, known[found, place], "rx", label=f"{name}, anomalous")
        axes.axvline(-compared - 0.5, color="grey", linewidth=0.5)
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Filled(Result):
    """The last steps of a series with its missing values filled in: [steps, channels]."""

    imputed: Array
    truncated: bool = False

    def shown(self) -> str:
        return f"{len(self.imputed)} steps, the last: {_channels(self.imputed[-SHOWN:])}"


def _names(series: TimeSeries, channels: int) -> list[str]:
    """Of channels."""
    return [
        series.names[place] if place < len(series.names) else f"channel {place}" if channels > 1 else "series"
        for place in range(channels)
    ]


def _channels(values: Array) -> str:
    """The first numbers of the first channels."""
    lines = [" ".join(f"{value:.4g}" for value in channel[:SHOWN]) for channel in values.T[:SHOWN]]
    more = " ..." if len(values) > SHOWN else ""
    return "; ".join(f"{line}{more}" for line in lines) + (" ..." if values.shape[1] > SHOWN else "")
