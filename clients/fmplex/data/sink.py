"""Rows written to a CSV, JSONL or Parquet file piece by piece, so that what was interrupted can go on.

Beside the output stands `OUT.progress`: how far the output is known to be whole. It is written before the output
and after each piece that is on disk, and is removed when the output is complete. What an interrupted run wrote
beyond it is cut off. A Parquet file cannot be appended to: its pieces are files of their own in `OUT.parts`, which
become one file at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fmplex.data.stream import import_parquet
from fmplex_backend.errors import TaskProblem
from fmplex_backend.spreadsheet import text_cell

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
Cells = Mapping[str, Any]


@dataclass
class Progress:
    """What is on disk: `rows` of the input, of which `failed` have an error; `size` in bytes, or Parquet files."""

    job: dict[str, Any]  # what makes two runs the same
    columns: list[str]
    rows: int = 0
    failed: int = 0
    size: int = 0


class Sink(ABC):
    """An output that is being written. Use it in a `with` block; `finish` completes it."""

    def __init__(self, file: Path, job: dict[str, Any], columns: list[str], schema: Any = None) -> None:
        self.file, self.schema = file, schema
        self._note = file.with_name(f"{file.name}.progress")
        self.progress = self._begun(job, columns)

    def _begun(self, job: dict[str, Any], columns: list[str]) -> Progress:
        """Where an interrupted run of the same job stopped, or nothing yet; raises TaskProblem."""
        if not self._note.exists():
            if self.file.exists():
                raise TaskProblem(f"{self.file} is there already. Name another --out, or give --overwrite")
            return Progress(job, columns)
        try:
            found = Progress(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TaskProblem(f"{self._note} cannot be read: {error}. Give --overwrite to begin anew") from None
        if found.job != job:
            changed = ", ".join(key for key in job if found.job.get(key) != job[key])
            raise TaskProblem(
                f"{self.file} was begun with another {changed}. Name another --out, or give --overwrite to begin anew"
            )
        if found.size > self._size():
            raise TaskProblem(f"{self.file} is shorter than {self._note} says. Give --overwrite to begin anew")
        return found

    def __enter__(self) -> Sink:
        self._keep_note()  # before there is an output: an output without it is complete
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, rows: Sequence[Cells], failed: int) -> None:
        """Append rows, `failed` of them with an error."""
        self._append(rows)
        self.progress.rows += len(rows)
        self.progress.failed += failed

    def keep(self) -> None:
        """Put on disk what was written, and that it is there."""
        self._flush()
        self.progress.size = self._size()
        self._keep_note()

    def finish(self) -> None:
        """Nothing more will come."""
        self.keep()
        self._complete()
        self._note.unlink()

    def _keep_note(self) -> None:
        aside = self._note.with_name(f"{self._note.name}.new")
        aside.write_text(json.dumps(asdict(self.progress)), encoding="utf-8")
        aside.replace(self._note)

    @abstractmethod
    def _open(self) -> None:
        """Cut off what is beyond the progress, and go on there."""

    @abstractmethod
    def _append(self, rows: Sequence[Cells]) -> None: ...

    @abstractmethod
    def _flush(self) -> None: ...

    @abstractmethod
    def _size(self) -> int: ...

    @abstractmethod
    def _complete(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class TextSink(Sink):
    """CSV, TSV or JSONL."""

    _stream: BinaryIO

    def _open(self) -> None:
        self._stream = self.file.open("r+b" if self.file.exists() else "wb")
        self._stream.truncate(self.progress.size)
        self._stream.seek(0, os.SEEK_END)
        if not self.progress.size and self.file.suffix != ".jsonl":
            self._append([dict(zip(self.progress.columns, self.progress.columns, strict=True))])

    def _append(self, rows: Sequence[Cells]) -> None:
        text = json_lines(rows) if self.file.suffix == ".jsonl" else self._csv_lines(rows)
        self._stream.write(text.encode("utf-8", "replace"))

    def _csv_lines(self, rows: Sequence[Cells]) -> str:
        lines = io.StringIO()
        writer = csv.writer(lines, delimiter="," if self.file.suffix == ".csv" else "\t", lineterminator="\n")
        writer.writerows([_csv_cell(row.get(name)) for name in self.progress.columns] for row in rows)
        return lines.getvalue()

    def _flush(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def _complete(self) -> None:
        pass

    def _close(self) -> None:
        self._stream.close()


class ParquetSink(Sink):
    """Parquet: columns of the input as they are there, or as strings."""

    def __init__(self, file: Path, job: dict[str, Any], columns: list[str], schema: Any = None) -> None:
        self._parts = file.with_name(f"{file.name}.parts")
        self._waiting: list[Cells] = []
        self._parquet = import_parquet()
        super().__init__(file, job, columns, schema)

    def _open(self) -> None:
        self._parts.mkdir(exist_ok=True)
        for part in self._parts.iterdir():
            if part not in self._part_files(self.progress.size):
                part.unlink()

    def _append(self, rows: Sequence[Cells]) -> None:
        self._waiting += rows

    def _flush(self) -> None:
        if self._waiting:
            part = self._parts / f"{self._size():08}.parquet"
            aside = part.with_suffix(".new")
            self._parquet.write_table(self._table(self._waiting), aside)
            aside.replace(part)
            self._waiting = []

    def _table(self, rows: Sequence[Cells]) -> Any:
        import pyarrow

        types = result_types()
        given = {} if self.schema is None else dict(zip(self.schema.names, self.schema.types, strict=True))
        schema = pyarrow.schema(
            [(name, given.get(name) or types.get(name, pyarrow.string())) for name in self.progress.columns]
        )
        as_text = {name for name in self.progress.columns if name not in given and name not in types}
        return pyarrow.Table.from_pylist(
            [{name: _text_cell(value) if name in as_text else value for name, value in row.items()} for row in rows],
            schema=schema,
        )

    def _part_files(self, number: int) -> list[Path]:
        return [self._parts / f"{place:08}.parquet" for place in range(number)]

    def _size(self) -> int:
        return len(list(self._parts.glob("*.parquet"))) if self._parts.is_dir() else 0

    def _complete(self) -> None:
        aside = self._parts / "whole.new"
        schema = self._table([]).schema
        with self._parquet.ParquetWriter(aside, schema) as writer:
            for part in self._part_files(self._size()):
                writer.write_table(self._parquet.read_table(part, schema=schema))
        aside.replace(self.file)
        shutil.rmtree(self._parts)

    def _close(self) -> None:
        pass


def result_types() -> dict[str, Any]:
    """pyarrow's types of results' fields; all others are strings."""
    import pyarrow as pa

    span = pa.struct(
        {
            "text": pa.string(),
            "label": pa.string(),
            "start": pa.int64(),
            "end": pa.int64(),
            "score": pa.float64(),
        }.items()
    )
    return {
        "score": pa.float64(),
        "scores": pa.map_(pa.string(), pa.float64()),
        "labels": pa.list_(pa.string()),
        "value": pa.float64(),
        "values": pa.list_(pa.float64()),
        "vector": pa.list_(pa.float32()),
        "spans": pa.list_(span),
        "truncated": pa.bool_(),
    }


def open_sink(
    file: Path, job: dict[str, Any], columns: list[str], *, schema: Any = None, overwrite: bool = False
) -> Sink:
    """An output by the end of its name; raises TaskProblem.

    Args:
        job: what makes two runs the same: a run goes on where an interrupted one of the same job stopped.
        schema: pyarrow's of the input, where it has one.
        overwrite: begin anew, whatever is there.
    """
    if file.suffix not in SUFFIXES:
        raise TaskProblem(f"{file}: results are written to {', '.join(SUFFIXES)} files. Name one of these")
    if not file.parent.is_dir():
        raise TaskProblem(f"there is no directory {file.parent} for {file.name}. Make it first")
    if overwrite:
        for old in (file, file.with_name(f"{file.name}.progress")):
            old.unlink(missing_ok=True)
        shutil.rmtree(file.with_name(f"{file.name}.parts"), ignore_errors=True)
    return (ParquetSink if file.suffix == ".parquet" else TextSink)(file, job, columns, schema)


def json_lines(rows: Sequence[Cells]) -> str:
    """One object a line."""
    return "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)


def _csv_cell(value: Any) -> str:
    """Labels with | between, as training data has them; numbers to six digits; all else as JSON.

    Texts come from whoever wrote them, and labels from a task's files: none is a formula in a spreadsheet.
    """
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return text_cell("|".join(value))
    return text_cell(str(_text_cell(value)))


def _text_cell(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # an unreadable text may hold lone surrogates
    return json.dumps(value, ensure_ascii=False, default=str)
