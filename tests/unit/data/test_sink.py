"""Outputs: what is in them, and how an interrupted one goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fmplex import TaskProblem
from fmplex.data.sink import open_sink

JOB = {"task": "spam", "input": "in.csv"}
ROWS: list[dict[str, Any]] = [
    {"text": f"text {number}, quoted", "n": number, "label": "spam", "score": 0.123456789, "scores": {"spam": 0.1}}
    | {"labels": ["a", "b"], "vector": [0.5, 1.0], "truncated": False, "error": ""}
    for number in range(10)
]
KINDS = ("csv", "tsv", "jsonl", "parquet")
COLUMNS = list(ROWS[0])
every_kind = pytest.mark.parametrize("kind", KINDS)


def content(file: Path) -> Any:
    """Comparable between two files of one kind."""
    return pyarrow.parquet.read_table(file).to_pylist() if file.suffix == ".parquet" else file.read_bytes()


def write_whole(file: Path, *pieces: list[dict[str, Any]]) -> Any:
    with open_sink(file, JOB, COLUMNS) as sink:
        for piece in pieces:
            sink.write(piece, 0)
            sink.keep()
        sink.finish()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return content(file)


def test_csv_cells(tmp_path: Path) -> None:
    write_whole(tmp_path / "out.csv", ROWS[:1])
    assert (tmp_path / "out.csv").read_text() == (
        "text,n,label,score,scores,labels,vector,truncated,error\n"
        '"text 0, quoted",0,spam,0.123457,"{""spam"": 0.1}",a|b,"[0.5, 1.0]",false,\n'
    )


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_spreadsheet_computes_nothing_of_it(tmp_path: Path, kind: str, delimiter: str) -> None:
    """Neither names of columns nor cells of the input, nor what a task answers; numbers stay numbers."""
    row = {"=text": "=1+1", "n": "-5", "label": "@SUM(A1)", "labels": ["-a", "b"], "score": -0.5, "vector": [-1.0]}
    file = tmp_path / f"out.{kind}"
    with open_sink(file, JOB, list(row)) as sink:
        sink.write([row], 0)
        sink.finish()
    with file.open(newline="") as stream:
        header, cells = csv.reader(stream, delimiter=delimiter)
    assert header == ["'=text", "n", "label", "labels", "score", "vector"]
    assert cells == ["'=1+1", "-5", "'@SUM(A1)", "'-a|b", "-0.5", "[-1.0]"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_no_spreadsheet_computes_is_as_it_is(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    with open_sink(file, JOB, ["text"]) as sink:
        sink.write([{"text": "=1+1"}], 0)
        sink.finish()
    found = content(file)
    assert (found if kind == "parquet" else [json.loads(found)]) == [{"text": "=1+1"}]


def test_jsonl_has_values_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "out.jsonl", ROWS[:2])
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ROWS[:2]


def test_parquet_has_types(tmp_path: Path) -> None:
    write_whole(tmp_path / "out.parquet", ROWS[:2], ROWS[2:5])
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 5
    types = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)}
    assert types["vector"].startswith("list<")
    assert types["vector"].endswith("float>")
    assert (types["n"], types["score"], types["truncated"]) == ("string", "double", "bool")
    assert table.to_pylist()[4]["labels"] == ["a", "b"]


def test_parquet_keeps_the_types_of_the_input(tmp_path: Path) -> None:
    schema = pyarrow.schema([("n", pyarrow.int64()), ("text", pyarrow.string())])
    with open_sink(tmp_path / "out.parquet", JOB, COLUMNS, schema=schema) as sink:
        sink.write(ROWS, 0)
        sink.finish()
    assert pyarrow.parquet.read_schema(tmp_path / "out.parquet").field("n").type == pyarrow.int64()


@every_kind
def test_what_was_interrupted_goes_on(tmp_path: Path, kind: str) -> None:
    (tmp_path / "whole").mkdir()
    whole = write_whole(tmp_path / "whole" / f"out.{kind}", ROWS)
    (tmp_path / "parts").mkdir()
    file = tmp_path / "parts" / f"out.{kind}"
    with open_sink(file, JOB, COLUMNS) as sink:
        sink.write(ROWS[:4], 1)
        sink.keep()
        sink.write(ROWS[4:6], 0)  # and nothing more: the process is killed
        if kind == "parquet":
            sink._flush()  # a piece that is on disk without being noted
    if kind != "parquet":
        with file.open("ab") as stream:
            stream.write(b'"half a ro')
    with open_sink(file, JOB, COLUMNS) as sink:
        assert (sink.progress.rows, sink.progress.failed) == (4, 1)
        sink.write(ROWS[4:], 0)
        sink.finish()
    assert content(file) == whole
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@every_kind
def test_killed_at_once(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    with open_sink(file, JOB, COLUMNS) as sink:
        sink.write(ROWS[:4], 0)
    (tmp_path / "whole").mkdir()
    with open_sink(file, JOB, COLUMNS) as sink:
        assert sink.progress.rows == 0
        sink.write(ROWS, 0)
        sink.finish()
    assert content(file) == write_whole(tmp_path / "whole" / f"out.{kind}", ROWS)


@every_kind
def test_an_output_that_is_there_is_not_written_over(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    before = write_whole(file, ROWS)
    with pytest.raises(TaskProblem, match=r"is there already. Name another --out, or give --overwrite"):
        open_sink(file, JOB, COLUMNS)
    assert content(file) == before
    with open_sink(file, JOB, COLUMNS, overwrite=True) as sink:
        sink.write(ROWS[:1], 0)
        sink.finish()
    assert content(file) != before


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_another_job_does_not_go_on_there(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    with open_sink(file, JOB, COLUMNS) as sink:
        sink.write(ROWS[:4], 0)
        sink.keep()
    with pytest.raises(TaskProblem, match="was begun with another input"):
        open_sink(file, JOB | {"input": "other.csv"}, COLUMNS)
    with open_sink(file, JOB | {"input": "other.csv"}, COLUMNS, overwrite=True) as sink:
        assert sink.progress.rows == 0


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    with open_sink(file, JOB, COLUMNS) as sink:
        sink.write(ROWS[:4], 0)
        sink.keep()
    file.write_text("cut")
    with pytest.raises(TaskProblem, match=r"is shorter than .*out.csv.progress says"):
        open_sink(file, JOB, COLUMNS)
    (tmp_path / "out.csv.progress").write_text("{")
    with pytest.raises(TaskProblem, match=r"cannot be read.*--overwrite"):
        open_sink(file, JOB, COLUMNS)


@pytest.mark.parametrize(
    ("name", "says"), [("out.xlsx", "written to .csv, .tsv"), ("nowhere/out.csv", "there is no directory")]
)
def test_places_that_are_none(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(TaskProblem, match=says):
        open_sink(tmp_path / name, JOB, COLUMNS)


@every_kind
def test_text_that_is_no_utf8_is_written_with_a_mark_in_its_place(tmp_path: Path, kind: str) -> None:
    with open_sink(tmp_path / f"out.{kind}", JOB, ["text"]) as sink:
        sink.write([{"text": "a\udcffb"}], 0)
        sink.finish()
    assert "a?b" in str(content(tmp_path / f"out.{kind}"))


@every_kind
def test_no_rows(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    with open_sink(file, JOB, COLUMNS) as sink:
        sink.finish()
    assert kind == "jsonl" or "text" in str(pyarrow.parquet.read_schema(file) if kind == "parquet" else content(file))
