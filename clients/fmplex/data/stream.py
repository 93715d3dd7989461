"""Rows of CSV, TSV, JSONL, plain-text and Parquet files, one after the other: a file is never in memory as a whole.

A row that cannot be read is a row with an error: those behind it are read all the same.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from fmplex_backend.errors import TaskProblem

STDIN = Path("-")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
LINE_BYTES = 64 << 20  # longer lines are cut there, and are errors
CELL_CHARACTERS = 16 << 20
PARQUET_ROWS = 1024  # read at a time
TEXT_COLUMN = "text"  # of a file of plain texts


@dataclass(frozen=True, slots=True)
class Row:
    """A row's place, such as "line 7", and its cells by column; or what is wrong with it."""

    place: str
    cells: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class Source:
    """A file that is being read: its columns are known before its rows are."""

    def __init__(self, name: str, columns: Sequence[str], rows: Iterator[Row], total: int | None = None) -> None:
        self.name, self.columns, self.rows, self.total = name, list(columns), rows, total
        self.done = 0  # of the total: bytes, of Parquet rows
        self.plain = False  # a text a line, without columns of its own
        self.schema: Any = None  # pyarrow's, of Parquet


@contextmanager
def open_source(file: Path, kind: str | None = None, columns: Sequence[str] = (TEXT_COLUMN,)) -> Iterator[Source]:
    """Read a file, or stdin for "-"; raises TaskProblem.

    Args:
        kind: one of FORMATS; None: as its name ends, and for stdin as its first line looks.
        columns: each one or several, comma-separated; if any are in the first line, stdin is CSV, not plain texts.
    """
    if file != STDIN and not file.is_file():
        raise TaskProblem(f"there is no file {file}. Name a {', '.join(SUFFIXES)} file, or - for stdin")
    kind = kind or SUFFIXES.get(file.suffix.lower())
    if kind is None and file != STDIN:
        raise TaskProblem(f"{file}: the format cannot be told by its name. Say --format {'|'.join(FORMATS)}")
    if kind == "parquet":
        yield _parquet(file)
    elif file == STDIN:
        yield _text_source("stdin", sys.stdin.buffer, kind, columns, None)
    else:
        with file.open("rb") as stream:
            yield _text_source(str(file), stream, kind, columns, file.stat().st_size)


def _text_source(name: str, stream: BinaryIO, kind: str | None, columns: Sequence[str], total: int | None) -> Source:
    source = Source(name, [], iter(()), total)
    lines = _lines(stream, source)
    first = next(lines, "")
    kind = kind or _look(first, columns)
    lines = chain([first] if first else [], lines)
    if kind == "jsonl":
        source.columns, source.rows = _peeked(_json_rows(lines))
    elif kind == "text":
        source.columns, source.rows, source.plain = [TEXT_COLUMN], _text_rows(lines), True
    else:
        source.columns, source.rows = _csv(lines, "," if kind == "csv" else "\t", name)
    return source


def _look(first: str, columns: Sequence[str]) -> str:
    """The format of a stream that has no name, by its first line."""
    if first.lstrip().startswith("{"):
        return "jsonl"
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        header = {*next(csv.reader([first.strip()], delimiter=delimiter), [])}
        if any({*each.split(",")} <= header for each in columns):
            return kind
    return "text"


def _lines(stream: BinaryIO, source: Source) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become lone surrogates, which `item_of` refuses."""
    mark = b"\xef\xbb\xbf"
    while line := stream.readline(LINE_BYTES):
        source.done += len(line)
        more = line
        while len(more) == LINE_BYTES and not more.endswith(b"\n"):
            more = stream.readline(LINE_BYTES)
            source.done += len(more)
        yield line.removeprefix(mark).decode("utf-8", "surrogateescape")
        mark = b""


def _text_rows(lines: Iterable[str]) -> Iterator[Row]:
    blank = 0  # lines since the last text: empty rows, unless they end the file
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text:
            blank += 1
            continue
        yield from _blank_rows(range(number - blank, number), TEXT_COLUMN)
        blank = 0
        yield Row(f"line {number}", {TEXT_COLUMN: text}, _too_long(line))


def _json_rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            yield Row(place, {}, _too_long(line) or f"not JSON: {error}")
            continue
        yield Row(place, found) if isinstance(found, dict) else Row(place, {}, f"{line.strip()[:40]} is not an object")


def _peeked(rows: Iterator[Row]) -> tuple[list[str], Iterator[Row]]:
    """Of rows that bring their own columns: those of the first that can be read."""
    before: list[Row] = []
    for row in rows:
        before.append(row)
        if not row.error:
            return list(row.cells), chain(before, rows)
    return [], iter(before)


def _csv(lines: Iterator[str], delimiter: str, name: str) -> tuple[list[str], Iterator[Row]]:
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        raise TaskProblem(f"{name}, line {reader.line_num}: the header cannot be read: {error}") from None
    twice = sorted({column for column in header if header.count(column) > 1})
    if not header or twice:
        raise TaskProblem(
            f"{name}: {f'columns are named twice: {twice}' if twice else 'it is empty'}. "
            "The first line names the columns, each once"
        )
    return header, _csv_rows(reader, header)


def _csv_rows(reader: Any, header: list[str]) -> Iterator[Row]:
    blank = 0
    while True:
        number = reader.line_num + 1  # a row may take several lines; its place is its first
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(f"line {number}", {}, f"not readable as CSV: {error}")
            continue
        if cells is None:
            return
        if not cells:
            blank += 1
            continue
        if len(header) == 1:
            yield from _blank_rows(range(number - blank, number), header[0])
        blank = 0
        too_many = f"{len(cells)} cells for {len(header)} columns; quote cells with a delimiter in them"
        problem = too_many if len(cells) > len(header) else ""
        yield Row(f"line {number}", dict(zip(header, cells, strict=False)), problem)


def _blank_rows(numbers: range, column: str) -> Iterator[Row]:
    return (Row(f"line {number}", {column: ""}) for number in numbers)


def _too_long(line: str) -> str:
    return f"longer than {LINE_BYTES >> 20} MiB" if len(line) >= LINE_BYTES else ""


def _parquet(file: Path) -> Source:
    if file == STDIN:
        raise TaskProblem("Parquet cannot be read from stdin. Name the file")
    parquet = import_parquet()
    try:
        table = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's errors of files are ValueErrors
        raise TaskProblem(f"{file} cannot be read as Parquet: {error}") from None
    source = Source(str(file), table.schema_arrow.names, iter(()), table.metadata.num_rows)
    source.schema = table.schema_arrow

    def rows() -> Iterator[Row]:
        for batch in table.iter_batches(PARQUET_ROWS):
            for cells in batch.to_pylist():
                source.done += 1
                yield Row(f"row {source.done}", cells)

    source.rows = rows()
    return source


def import_parquet() -> Any:
    """pyarrow.parquet; raises TaskProblem where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise TaskProblem("Parquet files need pyarrow: pip install 'fmplex[data]'") from None
    return pyarrow.parquet
