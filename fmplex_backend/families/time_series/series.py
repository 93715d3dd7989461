"""Time series as people have them (arrays, columns of tables, files): float32 [time, channels], NaN where missing."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.families.csv_header import check_csv_header

Array = npt.NDArray[np.float32]
SUFFIXES = (".csv", ".tsv", ".npy", ".parquet")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # cells of a table, in lower case
SERIES_COLUMN = "series"  # of a table: which series a row belongs to, or a whole series in a cell
FORMS = "Give numbers [time] or [time, channels], a DataFrame, or a .csv, .tsv, .npy or .parquet file of them"


class TimeSeries:
    """A series, and the names of its channels where it came with some.

    Args:
        values: [time, channels]; NaN is a missing value.
    """

    def __init__(self, values: Array, names: Sequence[str] = ()) -> None:
        self.values, self.names = values, tuple(names)

    def __str__(self) -> str:
        """Tells it from others."""
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimeSeries) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    @cached_property
    def _digest(self) -> str:
        return sha256(f"{self.values.shape}".encode() + np.ascontiguousarray(self.values).tobytes()).hexdigest()

    @property
    def steps(self) -> int:
        return len(self.values)

    @property
    def channels(self) -> int:
        return int(self.values.shape[1])

    def shown(self) -> str:
        """In a line, for people: one short channel as its numbers."""
        if self.channels == 1 and self.steps <= 64:
            return ",".join(f"{value:g}" for value in self.values[:, 0])
        return f"a series of {self.steps:,} steps, {self.channels} {'channel' if self.channels == 1 else 'channels'}"


def series_of(given: Any) -> TimeSeries:
    """Of a file, an array, nested lists or a DataFrame; raises ValueError."""
    if isinstance(given, TimeSeries):
        return given
    if isinstance(given, (str, Path)):
        return _from_file(Path(given))
    columns = {str(name): list(given[name]) for name in getattr(given, "columns", ())}
    if columns:
        return joined(columns, names_of_numbers(columns, list(columns)))
    return TimeSeries(_array(given))


def _array(given: Any) -> Array:
    try:
        values = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{repr(given)[:60]} is no series. {FORMS}") from None
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"an array {list(values.shape)} is no series. {FORMS}")
    return values


def _from_file(file: Path) -> TimeSeries:
    if not file.is_file():
        raise ValueError(f"there is no file {file}. Correct the path")
    kind = file.suffix.lower()
    try:
        if kind == ".npy":
            return TimeSeries(_array(np.load(file, allow_pickle=False)))
        if kind == ".parquet":
            return series_of(_parquet(file))
        if kind in (".csv", ".tsv"):
            with file.open(newline="", encoding="utf-8-sig") as stream:
                lines = list(csv.reader(stream, delimiter="," if kind == ".csv" else "\t"))
            header, rows = lines[0] if lines else [], lines[1:]
            check_csv_header(header)
            columns = {name: [row[at] if at < len(row) else "" for row in rows] for at, name in enumerate(header)}
            return joined(columns, names_of_numbers(columns, header))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a series: {error}") from None
    raise ValueError(f"{file} is no series. {FORMS}")


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("Parquet files need pyarrow: pip install 'fmplex[data]'") from None
    return parquet.read_table(file).to_pandas()


# -- tables


def joined(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> TimeSeries:
    """A channel for each of the named columns, a step for each row; raises ValueError."""
    if not names:
        raise ValueError(f"none of the columns {', '.join(columns) or '(none)'} holds numbers alone. {FORMS}")
    return TimeSeries(np.stack([_numbers(name, columns[name]) for name in names], axis=1), names)


def names_of_numbers(columns: Any, names: Sequence[str]) -> list[str]:
    """The columns whose cells are numbers or missing, at least one of them a number: dates and names are left out."""
    return [name for name in names if _are_numbers(columns[name])]


def grouped(columns: Mapping[str, Sequence[Any]], names: Sequence[str], by: str) -> dict[str, tuple[TimeSeries, int]]:
    """Of a table with a row for each step of each series: the series by what `by` says, and its first row."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(columns[by]):
        places.setdefault(str(key), []).append(place)
    whole = joined(columns, names)
    return {key: (TimeSeries(whole.values[own], names), own[0]) for key, own in places.items()}


def _are_numbers(cells: Sequence[Any]) -> bool:
    found = False
    for cell in cells:
        try:
            found |= not math.isnan(_number(cell))
        except (TypeError, ValueError):
            return False
    return found


def _numbers(name: str, cells: Sequence[Any]) -> Array:
    try:
        return np.array([_number(cell) for cell in cells], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {name!r} holds what is no number: {error}") from None


def _number(cell: Any) -> float:
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return math.nan
    if isinstance(cell, bool) or not (isinstance(cell, (str, int, float)) or hasattr(cell, "dtype")):
        raise ValueError(f"{cell!r}")
    return float(cell)
