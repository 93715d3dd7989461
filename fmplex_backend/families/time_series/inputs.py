"""The input of time series: SERIES, float32 [time, channels] of any length, NaN where a value is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.time_series.series import (
    SERIES_COLUMN,
    SUFFIXES,
    TimeSeries,
    grouped,
    joined,
    names_of_numbers,
    series_of,
)
from fmplex_backend.interface import TensorSpec

PROBE_STEPS, PROBE_PERIOD = 1200, 24


class SeriesInput:
    """SERIES [time, channels]; shorter series of a request begin with missing values."""

    tensor = TensorSpec("SERIES", "TYPE_FP32", (-1, -1))
    columns: Literal["one", "several"] = "one"
    default_column = SERIES_COLUMN
    files: Sequence[str] = SUFFIXES

    def is_item(self, data: Any) -> bool:
        """A list of numbers is a series, and so is an array [time, channels]; a list of anything else is several."""
        if isinstance(data, (TimeSeries, Path, str)):
            return isinstance(data, TimeSeries)
        dims = getattr(data, "ndim", None)
        if dims is not None:
            return bool(dims < 3) and not hasattr(data, "columns")
        return isinstance(data, (list, tuple)) and bool(data) and _is_number(data[0])

    def item(self, cell: Any) -> tuple[TimeSeries, list[tuple[int, int]]]:
        return series_of(cell), []

    def array(self, items: Sequence[Any]) -> npt.NDArray[np.float32]:
        """[n, time, channels]; raises TaskProblem where they have not as many channels."""
        found = [_series(item) for item in items]
        channels = {each.channels for each in found}
        if len(channels) > 1:
            raise TaskProblem(
                f"series of one request must have as many channels, these have {sorted(channels)}. Ask one by one"
            )
        longest = max((each.steps for each in found), default=0)
        every = np.full((len(found), longest, max(channels, default=1)), np.nan, dtype=np.float32)
        for place, each in enumerate(found):
            every[place, longest - each.steps :] = each.values
        return every

    def from_table(
        self, columns: Mapping[str, Sequence[Any]], named: Sequence[str] | None, label: str | None
    ) -> tuple[list[TimeSeries], list[Any]]:
        """Series of a table, and their labels where it has such; raises ValueError.

        With a column `series`, a series is a cell of it (numbers, or a file), or all rows that have one value there.
        Without, it is a row where each has a label, else the whole table.

        Args:
            named: the columns that are channels (of a series in a row: its steps); those of numbers by default.
        """
        has_labels = label is not None and label in columns
        labels = list(columns[label]) if label is not None and has_labels else []
        keys = columns.get(SERIES_COLUMN)
        if keys is not None and len(keys) and _is_whole(keys[0]):
            return [series_of(cell) for cell in keys], labels
        others = [name for name in columns if name not in (label, SERIES_COLUMN)]
        names = list(named) if named is not None else names_of_numbers(columns, others)
        if keys is not None:
            found = grouped(columns, names, SERIES_COLUMN)
            return [each for each, _ in found.values()], _common(labels, keys, [at for _, at in found.values()])
        whole = joined(columns, names)
        if has_labels:
            return [TimeSeries(row[:, None]) for row in whole.values], labels
        return [whole], []

    def parted(self, item: Any, steps: int) -> tuple[TimeSeries, TimeSeries]:
        series = _series(item)
        if not 0 < steps < series.steps:
            raise TaskProblem(f"{steps} steps cannot be held back of a series of {series.steps}. Give fewer")
        first, last = series.values[:-steps], series.values[-steps:]
        return TimeSeries(first, series.names), TimeSeries(last, series.names)

    def parse(self, argument: str) -> TimeSeries:
        try:
            if Path(argument).suffix.lower() in SUFFIXES:
                return series_of(argument)
            return series_of([float(number) if number.strip() else np.nan for number in argument.split(",")])
        except ValueError as error:
            raise TaskProblem(f"{argument!r} is no series: {error}. Give e.g. 3.5,4,nan,5 or a file") from None

    def show(self, item: Any) -> str:
        return _series(item).shown()

    def probe(self, size: int | None) -> TimeSeries:
        """Waves, long enough to hold some of them back."""
        wave = np.sin(2 * np.pi * np.arange(PROBE_STEPS) / PROBE_PERIOD)
        return TimeSeries(np.stack([wave + place for place in range(size or 1)], axis=1).astype(np.float32))


def _series(item: Any) -> TimeSeries:
    try:
        return series_of(item)
    except ValueError as error:
        raise TaskProblem(f"the task reads series: {error}") from None


def _is_number(cell: Any) -> bool:
    return cell is None or isinstance(cell, (int, float)) or getattr(cell, "ndim", None) == 0


def _is_whole(cell: Any) -> bool:
    """Whether a cell is a series, and not the name of one."""
    if isinstance(cell, str):
        return Path(cell).suffix.lower() in SUFFIXES
    return isinstance(cell, (list, tuple, Path, TimeSeries)) or getattr(cell, "ndim", 0) > 0


def _common(labels: Sequence[Any], keys: Sequence[Any], first: Sequence[int]) -> list[Any]:
    """The label of each series, which all of its rows have; raises ValueError."""
    if not labels:
        return []
    own = {str(keys[place]): labels[place] for place in first}
    for key, label in zip(keys, labels, strict=True):
        if own[str(key)] != label:
            raise ValueError(f"the series {key!r} has the labels {own[str(key)]!r} and {label!r}. Give it one")
    return [labels[place] for place in first]


SERIES = SeriesInput()
