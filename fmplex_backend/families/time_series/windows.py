"""Windows of series, from which forecasting is learned: some steps, and those that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.time_series.series import Array, TimeSeries

MOST_CHANNELS = 8192  # of all windows together: their states are kept in memory while a head is fitted
LEAST_BEFORE = 2  # steps before those that are to be forecast


class Future(NamedTuple):
    """The label of a window."""

    values: Array  # [horizon, channels], NaN where missing
    start: int  # the step of the series at which it begins
    included: bool  # whether the window's item ends with it


def windows_of(
    items: Sequence[TimeSeries], source: str, horizon: int, context: int, *, with_future: bool = False
) -> Rows:
    """Windows at even distances, at most as many as make MOST_CHANNELS channels; raises TaskProblem.

    Args:
        context: steps before those that are to be forecast, at most.
        with_future: whether a window's item has these steps too, as a decoder wants it that compares.
    """
    starts = [_starts(series, horizon, context) for series in items]
    channels = max((series.channels for series in items), default=1)
    stride = -(-sum(map(len, starts)) * channels // MOST_CHANNELS) or 1
    found, futures = [], []
    for series, start in _every(items, starts, stride):
        future = series.values[start : start + horizon]
        before = series.values[max(0, start - context) : start]
        if np.isnan(future).all() or not (np.count_nonzero(~np.isnan(before), axis=0) >= LEAST_BEFORE).all():
            continue
        end = start + horizon if with_future else start
        found.append(TimeSeries(series.values[max(0, start - context) : end], series.names))
        futures.append(Future(future, start, with_future))
    if not found:
        longest = max((series.steps for series in items), default=0)
        raise TaskProblem(
            f"{source}: the longest series has {longest} steps, and no {LEAST_BEFORE} known ones with {horizon} behind "
            "them. Give longer series, or a shorter horizon"
        )
    return Rows(found, futures, [], source)


def later_part(labels: Sequence[Any], part: float, horizon: int) -> tuple[list[int], list[int]] | None:
    """Indices of windows to train on, and of the fraction that begins last; none of the former reaches into these.

    None where the rows are no windows; raises TaskProblem where they are too few.
    """
    if not labels or not all(isinstance(label, Future) for label in labels):
        return None
    starts = np.array([label.start for label in labels])
    first = np.quantile(starts, 1 - part, method="higher")
    training, held = np.flatnonzero(starts + horizon <= first), np.flatnonzero(starts >= first)
    if not len(training) or not len(held):
        raise TaskProblem(
            f"{len(labels)} windows are too few to hold the last {part:g} of them out. Give longer series, a shorter "
            "horizon, or validation=None"
        )
    return training.tolist(), held.tolist()


def _starts(series: TimeSeries, horizon: int, context: int) -> range:
    """Where futures begin: the first with a whole context before it, of a short series in its middle."""
    last = series.steps - horizon
    return range(max(LEAST_BEFORE, min(context, last // 2)), last + 1)


def _every(items: Sequence[TimeSeries], starts: Sequence[range], stride: int) -> Iterator[tuple[TimeSeries, int]]:
    """One in `stride` starts, counted through all series."""
    first = 0
    for series, own in zip(items, starts, strict=True):
        for start in own[first::stride]:
            yield series, start
        first = (first - len(own)) % stride
