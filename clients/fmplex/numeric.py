"""Rows of numbers and labels out of whatever people keep them in: arrays, pairs, tables, CSV, TSV and JSONL files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmplex.data import Rows, check_columns, check_labels, columns_in, read_file
from fmplex.errors import TaskProblem


def number_rows(data: Any, labels: Any = None, *, columns: Sequence[str] | None, label: str) -> Rows:
    """Examples out of any of the supported forms; raises TaskProblem.

    Args:
        columns: those of the numbers; None: all but the label's.
    """
    source = "the data"
    if labels is None and isinstance(data, (str, Path)):
        source, data = str(data), read_file(Path(data))
    if labels is not None:
        return Rows(_numbers(data, source), check_labels(list(data), list(labels), source), [], source)
    if isinstance(data, (list, tuple)) and data and not isinstance(data[0], Mapping):
        if not all(isinstance(row, (list, tuple)) and len(row) == 2 for row in data):
            raise TaskProblem("labels are missing. Call fit(rows, labels), or give pairs, a table or a file with both")
        rows, values = [row[0] for row in data], [row[1] for row in data]
        return Rows(_numbers(rows, source), check_labels(rows, values, source), [], source)
    names = columns_in(data, source)
    check_columns(names, {label: "label"}, source)
    rows = _cells(data, columns or [name for name in names if name != label], names, source)
    values = [row[label] for row in data] if isinstance(data, (list, tuple)) else list(data[label])
    return Rows(_numbers(rows, source), check_labels(rows, values, source), [], source)


def numbers_of(data: Any) -> list[list[float]]:
    """Rows of numbers alone: lists, an array, every column of a table or a file."""
    if isinstance(data, (str, Path)):
        data = read_file(Path(data))
    named = hasattr(data, "column_names") or hasattr(data, "keys")
    if named or (isinstance(data, (list, tuple)) and data and isinstance(data[0], Mapping)):
        names = columns_in(data, "the data")
        data = _cells(data, names, names, "the data")
    return _numbers(data, "the data")


def _cells(data: Any, wanted: Sequence[str], names: Sequence[str], source: str) -> list[list[Any]]:
    check_columns(names, dict.fromkeys(wanted, "text"), source)
    if isinstance(data, (list, tuple)):
        return [[row[name] for name in wanted] for row in data]
    return [list(row) for row in zip(*(list(data[name]) for name in wanted), strict=True)]


def _numbers(rows: Any, source: str) -> list[list[float]]:
    found = []
    for place, row in enumerate(rows):
        try:
            found.append([float(cell) for cell in row])
        except (TypeError, ValueError):
            raise TaskProblem(
                f"{source}, row {place}: {row!r} is no row of numbers. Correct it, or name the columns with text=[...]"
            ) from None
    return found
