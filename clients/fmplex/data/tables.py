"""Tables: CSV, TSV, JSONL and Parquet files, lists of dicts, DataFrames and Datasets, by their columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmplex.data.stream import import_parquet
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.csv_header import check_csv_header


def read_file(file: Path) -> Any:
    """The table in a CSV, TSV, JSONL or Parquet file; raises TaskProblem."""
    if not file.is_file():
        raise TaskProblem(f"there is no file {file}. Name a .csv, .tsv, .jsonl or .parquet file")
    kind = file.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            with file.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream, delimiter="," if kind == ".csv" else "\t")
                _check_header(reader.fieldnames or [], file)
                return list(reader)
        if kind in (".jsonl", ".ndjson"):
            lines = file.read_text(encoding="utf-8").splitlines()
            return [_json_row(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskProblem(f"{file} cannot be read: {error}. Save it as UTF-8 {kind[1:].upper()}") from None
    if kind == ".parquet":
        return _parquet(file)
    raise TaskProblem(f"{file} has no supported format. Give a .csv, .tsv, .jsonl or .parquet file")


def _check_header(names: Sequence[str], file: Path) -> None:
    try:
        check_csv_header(names)
    except ValueError as error:
        raise TaskProblem(f"{file}: {error}") from None


def _parquet(file: Path) -> dict[str, list[Any]]:
    """By column."""
    parquet = import_parquet()
    try:
        columns: dict[str, list[Any]] = parquet.read_table(file).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's errors of files are ValueErrors
        raise TaskProblem(f"{file} cannot be read as Parquet: {error}. Write it again, whole") from None
    return columns


def _json_row(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskProblem(f"{file}, line {number}: not JSON: {error}. Put one object on each line") from None
    if not isinstance(row, dict):
        raise TaskProblem(f"{file}, line {number}: {line[:40]!r} is not an object. Put one object on each line")
    return row


def is_table(data: Any) -> bool:
    """Whether it has named columns; a list has them where its rows are dicts."""
    if isinstance(data, (list, tuple)):
        return bool(data) and isinstance(data[0], Mapping)
    return hasattr(data, "keys") or hasattr(data, "column_names")


def columns_in(data: Any, source: str) -> list[str]:
    """Names of a table's columns; raises TaskProblem where it has none."""
    if isinstance(data, (list, tuple)):
        return [str(name) for name in data[0]] if data else []
    names = list(getattr(data, "column_names", None) or getattr(data, "keys", list)())
    if not names:
        raise TaskProblem(
            f"{type(data).__name__} is not a supported form of data. Give lists, a DataFrame, a Dataset or a file"
        )
    return [str(name) for name in names]


def check_columns(names: Sequence[str], options: Mapping[str, str], source: str) -> None:
    """Raise TaskProblem where a column is missing; `options` are the options of `fit` that name columns."""
    for wanted, option in options.items():
        if wanted not in names:
            raise TaskProblem(
                f"{source} has no column {wanted!r}, but {', '.join(names)}. Name the right one with {option}=..."
            )


def column(data: Any, name: str) -> list[Any]:
    """One column's cells; pandas may name a column by a number."""
    if isinstance(data, (list, tuple)):
        return [row.get(name) for row in data]
    if hasattr(data, "iloc") and name not in data:
        name = next(each for each in data.keys() if str(each) == name)  # noqa: SIM118
    return list(data[name])
